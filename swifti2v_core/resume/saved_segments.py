"""Finished segments on disk, from which an interrupted run resumes.

The user's name for a run is a folder; inside it, every run has a folder of its own, named after the
fingerprints of everything that determines its result. Two runs under one name therefore cannot mix, the
same run finds its segments again, and no clock is involved.
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
from .run_folders import (
    PARTIAL_SUFFIX,
    SUFFIX,
    delete_old_runs,
    delete_segments,
    describe_runs,
    find_runs,
    megabytes,
)

logger = logging.getLogger("SwiftI2V")

FORMAT = "SwiftI2V segment 1"
"""Format name in every file; a change of the contents needs another number."""

FRAMES = "frames"
"""Name of the one tensor of a file."""

FINGERPRINT_PREFIX = "part: "
"""Prefix of the metadata entries that hold the fingerprints."""

MAX_HEADER_BYTES = 2**16
"""Most bytes that a file may have in addition to its frames."""

MAX_NAME_LENGTH = 60
"""Longest name in characters; with 4 bytes each, still a file name on every system."""

RESERVED_NAME = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names of devices on Windows."""


def check_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a valid name of one folder on every system."""
    allowed = re.sub(r"[^\w\- .]", "_", name)[:MAX_NAME_LENGTH].strip(" .") or "checkpoint"
    if RESERVED_NAME.fullmatch(allowed):
        allowed = f"_{allowed}"
    if name != allowed:
        raise ValueError(
            f'checkpoint is "{shortened(name)}", but must be a name of at most {MAX_NAME_LENGTH} '
            'letters, digits, spaces and "-_.", with no dot or space at its ends, and not a device on '
            f'Windows; the nearest valid value is "{allowed}".'
        )


class SavedSegments:
    """The finished segments of one run.

    Parameters
    ----------
    base
        Folder of all runs; created when needed.
    name
        The user's name for the run, see `check_name`.
    fingerprints
        Fingerprints of everything that determines the result, by the name that users know it by.

    Raises
    ------
    ValueError
        If the name is not valid, or if a link leads its folder out of ``base``.
    """

    def __init__(self, base: Path, name: str, fingerprints: Mapping[str, str]) -> None:
        check_name(name)
        self._name = name
        self._fingerprints = dict(fingerprints)
        self._name_folder = base / name
        self._folder = self._name_folder / fingerprint(self._fingerprints)[:16]
        self._unwritten: list[tuple[Path, dict[str, str], Tensor]] = []
        for folder in (self._name_folder, self._folder):
            if folder.resolve().parent != folder.parent.resolve():
                raise ValueError(
                    f'checkpoint is "{name}", but its folder is a link to {folder.resolve()}; remove the '
                    "link or choose another name."
                )

    def prepare(self, needed_bytes: int) -> None:
        """Create the run's folder and remove the unfinished files of a killed process.

        Parameters
        ----------
        needed_bytes
            Size of the segments that are still to be saved.

        Raises
        ------
        ValueError
            If the folder cannot be written to, or if its disk has too little space.
        """
        try:
            with contextlib.suppress(FileNotFoundError):  # another server may delete the folder meanwhile
                with contextlib.suppress(FileExistsError):  # also raised where it has just been deleted
                    self._folder.mkdir(parents=True, exist_ok=True)
                for partial in self._folder.glob(f"*{PARTIAL_SUFFIX}"):
                    partial.unlink(missing_ok=True)
                trial = self._folder / f"{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
                trial.touch(exist_ok=False)
                trial.unlink(missing_ok=True)
            self._name_folder.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._name_folder.parent).free
        except OSError as error:
            raise ValueError(
                f'checkpoint is "{self._name}", but {self._folder} cannot be written to '
                f"({error.strerror}); make it writable."
            ) from None
        if free < needed_bytes:
            raise ValueError(
                f'checkpoint is "{self._name}" and needs {megabytes(needed_bytes)} in {self._folder}, but '
                f"only {megabytes(free)} are free; free some space."
            )

    def load(self, clip: int, segment: int, shape: Sequence[int]) -> Tensor | None:
        """Return the frames of a finished segment, float32, or None if it is not saved.

        A file that is damaged or belongs to another run is logged in one line and ignored.

        Parameters
        ----------
        clip, segment
            Index of the clip in its batch and of the segment in its plan.
        shape
            Expected shape of the frames.
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
        """Write the frames of a finished segment; the file appears complete or not at all.

        If the disk refuses, a warning is logged and the run continues; what could not be written is tried
        again with the next segment.

        Parameters
        ----------
        clip, segment
            Index of the clip in its batch and of the segment in its plan.
        frames
            The segment's noisy frames, float32; must not change afterwards.
        """
        self._unwritten.append((*self._file(clip, segment), frames))
        try:
            while self._unwritten:
                _write(*self._unwritten[0])
                self._unwritten.pop(0)
        except OSError as error:
            logger.warning(
                'Checkpoint "%s": %d finished segments are not on disk yet (%s); the run continues and '
                "tries again, check %s.",
                self._name,
                len(self._unwritten),
                error.strerror,
                self._folder,
            )

    def keep(self) -> None:
        """Leave everything where it is."""

    def delete(self) -> None:
        """Delete the run's files, and the folders that are then empty."""
        delete_segments(self._folder)

    def delete_others(self, kept: int) -> None:
        """Delete the oldest other runs under the name, and log how many; see `delete_old_runs`.

        Parameters
        ----------
        kept
            Number of runs to keep, this one included.
        """
        runs = find_runs(self._name_folder, but=self._folder.name)
        if deleted := delete_old_runs(runs, kept - 1):
            logger.info(
                'Checkpoint "%s": the oldest %d of %d other runs are deleted (%s).',
                self._name,
                len(deleted),
                len(runs),
                megabytes(sum(run.size for run in deleted)),
            )

    def log_others(self) -> None:
        """Log how many other runs lie under the name, their size and the age of the oldest, if any."""
        if runs := find_runs(self._name_folder, but=self._folder.name):
            logger.info('Checkpoint "%s" holds %s.', self._name, describe_runs(runs))

    def log_restored(self, segments: int, missing: int) -> None:
        """Log how many segments were restored, or why none were: what differs from the other runs.

        Parameters
        ----------
        segments, missing
            Number of segments of the run, and of those that are not saved.
        """
        if missing < segments:
            logger.info(
                'Checkpoint "%s": %d of %d segments restored.', self._name, segments - missing, segments
            )
        elif differences := self._differences():
            logger.info(
                'Checkpoint "%s" holds a run that differs in %s; this run starts from the beginning and is '
                "saved separately.",
                self._name,
                ", ".join(differences),
            )

    def _differences(self) -> list[str]:
        """Return the differences from the most similar other run; empty if there is no other."""
        with contextlib.suppress(OSError):
            runs = [
                _read_fingerprints(path)
                for path in self._name_folder.iterdir()
                if path.name != self._folder.name
            ]
            return min((self._differences_from(run) for run in runs if run), key=len, default=[])
        return []

    def _differences_from(self, other: Mapping[str, str]) -> list[str]:
        names = {**self._fingerprints, **other}
        return [name for name in names if self._fingerprints.get(name) != other.get(name)]

    def _file(self, clip: int, segment: int) -> tuple[Path, dict[str, str]]:
        path = self._folder / f"clip-{clip:04}-segment-{segment:05}{SUFFIX}"
        fingerprints = {
            f"{FINGERPRINT_PREFIX}{name}": digest for name, digest in self._fingerprints.items()
        }
        return path, {"format": FORMAT, "clip": str(clip), "segment": str(segment), **fingerprints}


def _write(path: Path, metadata: dict[str, str], frames: Tensor) -> None:
    stored = frames.cpu().contiguous()
    data = save({FRAMES: stored}, {**metadata, "checksum": fingerprint(stored)})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A unique name: another server may be writing the same segment.
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power failure, where supported: not on Windows and some mounts."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path, expected: Mapping[str, str], shape: Sequence[int]) -> Tensor:
    """Return the frames of a file; raise ValueError unless it is exactly the expected one."""
    size = _regular_file_size(path)
    frames_bytes = 4 * math.prod(shape)
    if not frames_bytes <= size <= frames_bytes + MAX_HEADER_BYTES:
        raise ValueError(f"it has {size} bytes, where {frames_bytes} and a short header belong.")
    data = path.read_bytes()  # not memory-mapped: truncation by another process would crash
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
        The file, at position 0.

    Raises
    ------
    ValueError
        If there is no metadata, or if the header exceeds `MAX_HEADER_BYTES`.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"it is damaged (its header has {length} bytes).")
    try:
        header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        return {str(name): str(metadata[name]) for name in metadata}
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError("it is damaged (it has no metadata).") from None


def _regular_file_size(path: Path) -> int:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block, a link may lead anywhere
        raise ValueError("it is no regular file.")
    return status.st_size


def _read_fingerprints(folder: Path) -> dict[str, str]:
    """Return the fingerprints of the run in a folder; empty if none can be read."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(ValueError, OSError):
            _regular_file_size(path)
            with path.open("rb") as file:
                metadata = read_metadata(file)
            return {
                key.removeprefix(FINGERPRINT_PREFIX): entry
                for key, entry in metadata.items()
                if key.startswith(FINGERPRINT_PREFIX)
            }
    return {}
