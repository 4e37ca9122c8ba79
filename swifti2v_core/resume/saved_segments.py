"""Finished segments on disk, so that an interrupted run goes on where it stopped.

A run has a folder of its own, named after the fingerprints of all that determines it, inside the folder
that the user names. So two runs under one name cannot mix, the same run finds its segments again, and
nothing rests on a clock.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..text import shortened
from .fingerprint import fingerprint

logger = logging.getLogger("SwiftI2V")

FORMAT = "SwiftI2V segment 1"
"""What a file calls itself; a change of what is inside needs another number."""

FRAMES = "frames"
"""Name of the one tensor of a file."""

PART = "part: "
"""Prefix of the metadata entries that hold the fingerprints."""

SUFFIX, UNFINISHED = ".safetensors", ".part"
"""Endings of a finished file, and of one that is being written."""

LARGEST_HEADER = 2**16
"""Bytes that a file may have beside its frames."""

LONGEST_NAME = 60
"""Characters of a name: with 4 bytes each, still a file name everywhere."""

RESERVED_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that are devices on Windows."""


def check_name(name: str) -> None:
    """Raise ValueError unless a checkpoint's name is the name of one folder on every system."""
    allowed = re.sub(r"[^\w\- .]", "_", name)[:LONGEST_NAME].strip(" .") or "checkpoint"
    if RESERVED_NAME.fullmatch(allowed):
        allowed = f"_{allowed}"
    if name != allowed:
        raise ValueError(
            f'checkpoint is "{shortened(name)}", but must be a name of at most {LONGEST_NAME} '
            'letters, digits, spaces and "-_.", with no dot or space at its ends, that is no device on '
            f'Windows; the nearest valid value is "{allowed}".'
        )


class Checkpoint:
    """The finished segments of one run.

    Parameters
    ----------
    base
        Folder of all checkpoints; created when needed.
    name
        The user's name for the checkpoint, see `check_name`.
    parts
        Fingerprint of everything that determines the run, by the user's word for it.

    Raises
    ------
    ValueError
        If the name is no folder's name, or if that folder leads out of ``base``.
    """

    def __init__(self, base: Path, name: str, parts: Mapping[str, str]) -> None:
        check_name(name)
        self._name = name
        self._parts = dict(parts)
        self._named = base / name
        self._folder = self._named / fingerprint(self._parts)[:16]
        self._waiting: list[tuple[Path, dict[str, str], Tensor]] = []
        for folder in (self._named, self._folder):
            if folder.resolve().parent != folder.parent.resolve():
                raise ValueError(
                    f'checkpoint is "{name}", but its folder is a link to {folder.resolve()}; remove the '
                    "link or choose another name."
                )

    def prepare(self, needed: int) -> None:
        """Create the run's folder and clear it of what a killed process left unfinished.

        Parameters
        ----------
        needed
            Bytes of the segments that are still to be saved.

        Raises
        ------
        ValueError
            If the folder cannot be written to, or if it has too little space.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(f"*{UNFINISHED}"):
                left.unlink(missing_ok=True)
            trial = self._folder / f"{uuid.uuid4().hex}{UNFINISHED}"
            with contextlib.suppress(FileNotFoundError):  # another server has just deleted the folder
                trial.touch(exist_ok=False)
            trial.unlink(missing_ok=True)
            free = shutil.disk_usage(self._named.parent).free
        except OSError as error:
            raise ValueError(
                f'checkpoint is "{self._name}", but {self._folder} cannot be written to '
                f"({error.strerror}); make it writable or leave checkpoint empty."
            ) from None
        if free < needed:
            raise ValueError(
                f'checkpoint is "{self._name}" and needs {_megabytes(needed)} in {self._folder}, but only '
                f"{_megabytes(free)} are free; free some space or leave checkpoint empty."
            )

    def load(self, clip: int, segment: int, shape: Sequence[int]) -> Tensor | None:
        """Return the frames of a finished segment, float32, or None if there are none.

        A file that is damaged or not this run's is reported in one line and counts as none.

        Parameters
        ----------
        clip, segment
            Numbers of the clip in its batch and of the segment in its plan.
        shape
            Shape that the frames must have.
        """
        path, metadata = self._file(clip, segment)
        try:
            return _read(path, metadata, shape)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning('Checkpoint "%s": %s is ignored: %s', self._name, path.name, error)
            return None

    def save(self, clip: int, segment: int, frames: Tensor) -> None:
        """Write the frames of a finished segment; a file is there whole or not at all.

        When the disk refuses, a warning says so and the run goes on; what could not be written is tried
        again with the next segment.

        Parameters
        ----------
        clip, segment
            Numbers of the clip in its batch and of the segment in its plan.
        frames
            The segment's noisy frames, float32; must not change any more.
        """
        self._waiting.append((*self._file(clip, segment), frames))
        try:
            while self._waiting:
                _write(*self._waiting[0])
                self._waiting.pop(0)
        except OSError as error:
            logger.warning(
                'Checkpoint "%s": %d finished segments are not on disk yet (%s); the run goes on and tries '
                "again, look at %s.",
                self._name,
                len(self._waiting),
                error.strerror,
                self._folder,
            )

    def delete(self) -> None:
        """Remove the run's files, and the folders that are empty then."""
        with contextlib.suppress(OSError):  # another server may be doing the same
            for path in self._folder.glob(f"*{SUFFIX}"):
                path.unlink(missing_ok=True)
            self._folder.rmdir()
            self._named.rmdir()

    def tell(self, segments: int, missing: int) -> None:
        """Log where a run of so many segments begins, and why it does not go on from another one."""
        if missing < segments:
            logger.info(
                'Checkpoint "%s": %d of %d segments are there.', self._name, segments - missing, segments
            )
        elif differences := self._differences():
            logger.info(
                'Checkpoint "%s" holds a run that differs in %s; this one starts anew beside it.',
                self._name,
                ", ".join(differences),
            )

    def _differences(self) -> list[str]:
        """Return what this run differs in from the most similar other one; empty if there is no other."""
        with contextlib.suppress(OSError):
            others = [_parts_of(path) for path in self._named.iterdir() if path.name != self._folder.name]
            return min((self._differing(parts) for parts in others if parts), key=len, default=[])
        return []

    def _differing(self, other: Mapping[str, str]) -> list[str]:
        names = {**self._parts, **other}
        return [name for name in names if self._parts.get(name) != other.get(name)]

    def _file(self, clip: int, segment: int) -> tuple[Path, dict[str, str]]:
        path = self._folder / f"clip-{clip:04}-segment-{segment:05}{SUFFIX}"
        parts = {f"{PART}{name}": digest for name, digest in self._parts.items()}
        return path, {"format": FORMAT, "clip": str(clip), "segment": str(segment), **parts}


def _write(path: Path, metadata: dict[str, str], frames: Tensor) -> None:
    stored = frames.cpu().contiguous()
    data = save({FRAMES: stored}, {**metadata, "checksum": fingerprint(stored)})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: another server may be writing the same segment.
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _flush_names(path.parent)


def _flush_names(folder: Path) -> None:
    """Make a rename survive a power cut, where the system offers that: Windows and some mounts do not."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path, expected: Mapping[str, str], shape: Sequence[int]) -> Tensor:
    """Return the frames of a file; raises ValueError unless it is exactly the file that was expected."""
    size = _regular_file_size(path)
    frames_size = 4 * math.prod(shape)
    if not frames_size <= size <= frames_size + LARGEST_HEADER:
        raise ValueError(f"it has {size} bytes, where {frames_size} and a short header belong.")
    data = path.read_bytes()  # not mapped: a mapped file that another process cuts short is a crash
    metadata = read_metadata(io.BytesIO(data))
    checksum = metadata.pop("checksum", None)
    if metadata != expected:
        raise ValueError("it belongs to another run or another segment.")
    try:
        frames = load(data)[FRAMES]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"it is damaged ({shortened(str(error))}).") from None
    if frames.dtype != torch.float32 or tuple(frames.shape) != tuple(shape):
        raise ValueError(
            f"it holds {frames.dtype} of shape {tuple(frames.shape)}, not float32 {tuple(shape)}."
        )
    if fingerprint(frames) != checksum:
        raise ValueError("it is damaged (its checksum does not fit).")
    return frames


def read_metadata(file: IO[bytes]) -> dict[str, str]:
    """Return the metadata of a safetensors file without loading its tensors.

    Parameters
    ----------
    file
        The file, at its beginning.

    Raises
    ------
    ValueError
        If there is none, or a header of more than `LARGEST_HEADER` bytes.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"it is damaged (its header has {length} bytes).")
    try:
        header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        return {str(name): str(metadata[name]) for name in metadata}
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError("it is damaged (it has no metadata).") from None


def _regular_file_size(path: Path) -> int:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever, a link may lead anywhere
        raise ValueError("it is no regular file.")
    return status.st_size


def _parts_of(folder: Path) -> dict[str, str]:
    """Return the fingerprints of the run in a folder; empty if there is none to be read."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(ValueError, OSError):
            _regular_file_size(path)
            with path.open("rb") as file:
                metadata = read_metadata(file)
            return {key[len(PART) :]: entry for key, entry in metadata.items() if key.startswith(PART)}
    return {}


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
