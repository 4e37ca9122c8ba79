"""What the user sees: one live line, times and errors of one sentence."""

from __future__ import annotations

import shutil
import time
from typing import IO


class DevError(Exception):
    """Something the user can act on, said in one sentence."""


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
        """Leave the line as it stands and go on below it."""
        if self._width:
            print(file=self.stream)
            self._width = 0


def clock(seconds: float) -> str:
    """Format seconds as m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
