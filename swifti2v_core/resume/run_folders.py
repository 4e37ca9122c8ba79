"""The folders of the runs under one name: what lies there, how old it is, and how it is deleted.

Other servers may write, read and delete the same folders meanwhile. A run that loses its files makes its
segments again, so nothing here can change a result.
"""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SUFFIX, PARTIAL_SUFFIX = ".safetensors", ".part"
"""Suffixes of a finished file, and of one that is being written."""

RUN_NAME = re.compile(r"[0-9a-f]{16}")
"""Name of a run's folder, the start of a fingerprint."""

IN_USE_SECONDS = 3600
"""A run whose last file is younger than this may still be running on another server."""

UNITS = (("day", 24 * 3600), ("hour", 3600), ("minute", 60))
"""Units of an age, in seconds."""


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes
    ----------
    path
        Its folder.
    size
        Bytes of its files.
    age
        Seconds since the last one was written; negative if the clock was set back.
    """

    path: Path
    size: int
    age: float


def find_runs(name_folder: Path, but: str) -> list[RunFolder]:
    """Return the runs under a name, the newest first.

    Parameters
    ----------
    name_folder
        Their folder; may be missing.
    but
        Name of a run's folder to leave out.
    """
    runs = []
    with contextlib.suppress(OSError):
        for path in name_folder.iterdir():
            if path.name != but and RUN_NAME.fullmatch(path.name) and _is_own_folder(path):
                runs += _read_run(path)
    return sorted(runs, key=lambda run: run.age)


def _is_own_folder(path: Path) -> bool:
    """Return whether a path is a folder, and neither a link nor a junction to one."""
    return path.is_dir() and path.resolve() == path.parent.resolve() / path.name


def _read_run(folder: Path) -> list[RunFolder]:
    """Return the run in a folder, or nothing if it holds none or has just vanished."""
    with contextlib.suppress(OSError):
        files = [path.lstat() for path in folder.glob(f"*{SUFFIX}")]
        files = [file for file in files if stat.S_ISREG(file.st_mode)]
        if files:
            age = time.time() - max(file.st_mtime for file in files)
            return [RunFolder(folder, sum(file.st_size for file in files), age)]
    return []


def delete_old_runs(runs: Sequence[RunFolder], kept: int) -> list[RunFolder]:
    """Delete all but the newest runs; return those that are deleted.

    Runs that may be in use stay, see `IN_USE_SECONDS`, as do files that are no segments.

    Parameters
    ----------
    runs
        The newest first, as `find_runs` returns them.
    kept
        Number of runs to keep.
    """
    old = [run for run in runs[kept:] if run.age > IN_USE_SECONDS]
    for run in old:
        delete_segments(run.path, (SUFFIX, PARTIAL_SUFFIX))
    return [run for run in old if not _read_run(run.path)]


def delete_segments(folder: Path, suffixes: Iterable[str] = (SUFFIX,)) -> None:
    """Delete a run's files, and its folder and the one above if they are then empty."""
    with contextlib.suppress(OSError):  # another server may be doing the same
        for suffix in suffixes:
            for path in folder.glob(f"*{suffix}"):
                path.unlink(missing_ok=True)
        folder.rmdir()
        folder.parent.rmdir()


def describe_runs(runs: Sequence[RunFolder]) -> str:
    """Return the number of runs, their size and the age of the oldest: "2 other runs, 110.0 MB, ..."."""
    size = megabytes(sum(run.size for run in runs))
    oldest = _age(runs[-1].age)
    if len(runs) == 1:
        return f"1 other run, {size}, {oldest} old"
    return f"{len(runs)} other runs, {size}, the oldest {oldest} old"


def _age(seconds: float) -> str:
    for unit, length in UNITS:
        count = int(seconds // length)
        if count > 0:
            return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
    return "less than a minute"


def megabytes(size: int) -> str:
    """Return a size in bytes as a text."""
    return f"{size / 2**20:.1f} MB"
