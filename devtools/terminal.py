"""What the user sees: one live line, times and errors of one sentence."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from collections.abc import Callable
from typing import IO


class DevError(Exception):
    """A problem that the user can solve, described in one sentence."""


class LiveLine:
    """One line, rewritten in place on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, stream: IO[str], every: float = 5.0) -> None:
        self.stream = stream
        self.every = every
        self._width = 0
        self._last = -every

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.stream.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif now - self._last >= self.every:
            self._last = now
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line; later output starts below it."""
        if self._width:
            print(file=self.stream)
            self._width = 0


def clock(seconds: float) -> str:
    """Format seconds as m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def exit_code(command: Callable[[], int]) -> int:
    """Run a command and return its exit code: 130 after Ctrl-C, 1 after an error, which it prints."""
    # SIGTERM must unwind like Ctrl-C does, or a server would be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        return 130
    except (DevError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
