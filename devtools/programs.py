"""Run other programs, and the disk space they need."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devtools import paths
from devtools.terminal import DevError, LiveLine, clock

WINDOWS = os.name == "nt"


def check_disk(folder: Path, gigabytes: float, purpose: str) -> None:
    """Raise DevError unless the disk of `folder`, which need not exist yet, has that much free space."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise DevError(
            f"{purpose} needs about {gigabytes:g} GB of free disk space in {folder}, "
            f"and only {free:.1f} GB are free."
        )


def call(command: Sequence[str | Path], env: dict[str, str] | None = None) -> int:
    """Run a program in the root of the repository, with its output passed through; return its exit code."""
    sys.stdout.flush()
    process = subprocess.Popen(command, cwd=paths.REPO, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        stop_process(process, signal.SIGINT)  # pytest then stops its servers
        raise


def become(command: Sequence[str | Path]) -> int:
    """Continue as another program, which then receives every signal; return its exit code on Windows."""
    sys.stdout.flush()
    if not WINDOWS:
        os.execv(command[0], [str(word) for word in command])
    process = subprocess.Popen(command)
    while True:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C reaches every program of a console
            return process.wait()


def module_command(python: Path, module: str) -> list[str | Path]:
    """Return the command that runs a module of the repository as a program.

    `python -m` finds it in the current folder only, and not at all in an embedded Python like that of
    ComfyUI's portable version.
    """
    code = (
        f"import runpy, sys; sys.path.insert(0, {str(paths.REPO)!r}); "
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [python, "-I", "-c", code]


def stop_process(process: subprocess.Popen[Any], request: int = signal.SIGTERM) -> None:
    """End a child process: ask, wait, then kill."""
    process.send_signal(signal.SIGTERM if WINDOWS else request)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_logged(command: Sequence[str | Path], doing: str) -> None:
    """Run a set-up step with its output in the log and one live line on stderr."""
    paths.WORKSPACE.mkdir(parents=True, exist_ok=True)
    log_path = paths.WORKSPACE / "setup.log"
    live, started = LiveLine(sys.stderr, every=30.0), time.monotonic()
    with log_path.open("wb") as log, contextlib.closing(live):
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, cwd=paths.REPO, **options)
        try:
            while process.poll() is None:
                live.show(f"{doing} ... {clock(time.monotonic() - started)}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            stop_process(process)
    if process.returncode:
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["no reason given"]
        reason = errors[-1].removeprefix("ERROR: ")
        raise DevError(f"{doing} failed: {reason} (the log is {log_path})")


def pip(python: Path) -> list[str | Path]:
    """Return the words that every pip command begins with."""
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
