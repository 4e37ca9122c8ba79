"""Fuzz targets: the parsers of untrusted text and files. Each target takes any bytes.

A target returns if its input is valid or refused as documented, and raises otherwise.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from swifti2v_core.geometry import latent_frame_of
from swifti2v_core.reference.keyframes import parse_keyframe_times
from swifti2v_core.resume import saved_segments
from swifti2v_core.resume.fingerprint import fingerprint
from swifti2v_core.sigmas import flow_sigmas, parse_timesteps
from swifti2v_core.stage_two.prompt_ranges import check_frame_range, check_ranges_in_clip, chosen_prompts
from swifti2v_core.stage_two.segments import plan_segments

SHAPE = (1, 48, 1, 1, 1)
"""Shape of the frames in a saved file."""


def is_sentence(error: ValueError) -> None:
    """Raise AssertionError unless an error is one short sentence."""
    text = str(error)
    assert text.endswith(".") and "\n" not in text and len(text) < 500, text


def as_text(data: bytes) -> str:
    """Decode bytes; invalid UTF-8 becomes lone surrogates, which JSON can contain."""
    return data.decode("utf-8", errors="surrogateescape")


def timesteps(data: bytes) -> None:
    """A list of timesteps makes a schedule that falls to 0."""
    try:
        found = parse_timesteps(as_text(data))
    except ValueError as error:
        is_sentence(error)
        return
    sigmas = flow_sigmas(found, 5.0).tolist()
    assert len(sigmas) == len(found) + 1 and sigmas[-1] == 0 and 0 <= sigmas[0] <= 1
    assert all(a >= b for a, b in pairwise(sigmas))


def keyframe_times(data: bytes) -> None:
    """Keyframe times are frames of the clip, one per latent frame."""
    count, latent_frames = 1 + data[0] % 8, 2 + data[1] % 30
    frames = 4 * latent_frames - 3
    try:
        numbers = parse_keyframe_times(as_text(data[2:]), count, frames)
    except ValueError as error:
        is_sentence(error)
        return
    places = [latent_frame_of(number) for number in numbers]
    assert len(numbers) == count and numbers[0] >= 1 and numbers[-1] < frames
    assert all(a < b for a, b in pairwise(places)) and places[-1] < latent_frames
    plan_segments(latent_frames, 3, 1, places)


def prompt_ranges(data: bytes) -> None:
    """Every segment has a prompt, whatever ranges there are."""
    segments = plan_segments(2 + data[0] % 30, 1 + data[1] % 5, 0)
    numbers = [
        int.from_bytes(data[at : at + 3], "little", signed=True) for at in range(2, len(data) - 2, 3)
    ]
    ranges = list(zip(numbers[::2], numbers[1::2], strict=False))
    try:
        for start, end in ranges:
            check_frame_range(start, end)
        check_ranges_in_clip(ranges, 4 * (2 + data[0] % 30) - 3, "positive")
    except ValueError as error:
        is_sentence(error)
        return
    for segment in segments:
        chosen = chosen_prompts(ranges, segment)
        assert bool(chosen) == bool(ranges) and all(0 <= index < len(ranges) for index in chosen)


def checkpoint_name(data: bytes) -> None:
    """An accepted name is the name of one folder inside the base folder."""
    name = as_text(data)
    try:
        saved_segments.check_name(name)
    except ValueError as error:
        is_sentence(error)
        return
    base = Path("checkpoints").absolute()
    assert (base / name).resolve().parent == base and len(name.encode()) < 250


def checkpoint_metadata(data: bytes) -> None:
    """Metadata is a mapping of strings, or a documented error."""
    try:
        metadata = saved_segments.read_metadata(io.BytesIO(data))
    except ValueError as error:
        is_sentence(error)
        return
    assert all(isinstance(each, str) for entry in metadata.items() for each in entry)


def saved_run() -> saved_segments.SavedSegments:
    """Return the saved segments of one run, the same every time."""
    return saved_segments.SavedSegments(Path(FOLDER.name), "fuzz", {"seed": fingerprint(0)})


def valid_file() -> Path:
    """Return a file that a run has written."""
    saved_run().save(0, 0, torch.zeros(SHAPE))
    (path,) = Path(FOLDER.name).rglob("*.safetensors")
    return path


FOLDER = tempfile.TemporaryDirectory(prefix="swifti2v_fuzz_")
FILE = valid_file()
VALID = FILE.read_bytes()


def checkpoint_file(data: bytes) -> None:
    """A file is ignored without an error unless it carries the checksum of its own frames.

    The fuzzer sees the comparison of checksums and writes a matching one now and then.
    """
    FILE.write_bytes(data)
    frames = saved_run().load(0, 0, SHAPE)
    assert frames is None or fingerprint(frames).encode() in data


TARGETS: dict[Callable[[bytes], None], list[bytes]] = {
    timesteps: [b"1000, 757, 522", b"1e999", b"nan", b"500 250"],
    keyframe_times: [b"\x01\x14" + b"40, 80", b"\x00\x05" + b"-1", b"\x00\x03"],
    prompt_ranges: [b"\x14\x02" + bytes(6), b"\x05\x01" + b"\x08\x00\x00\x10\x00\x00"],
    checkpoint_name: [b"my clip", b"../x", b"con"],
    checkpoint_metadata: [VALID[:400]],
    checkpoint_file: [VALID],
}
"""Targets, each with its seed inputs."""
