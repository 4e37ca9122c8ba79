"""Clips from videos of any size and frame rate, never across a scene cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from swifti2v_core.images import fit_frames

from .scene_cuts import find_cuts

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")

THUMBNAIL = 32
"""Side in pixels of the thumbnails that are searched for cuts."""


def read_frames(path: Path) -> Iterator[Tensor]:
    """Yield the frames ``[H, W, 3]`` of a video in 0..1, upright.

    Raises
    ------
    ValueError
        If the file holds no video stream.
    av.error.FFmpegError, OSError
        If it cannot be read.
    """
    for frame in _decode(path):
        yield torch.from_numpy(_upright(frame, "rgb24")).float() / 255


def clips_of(
    path: Path, starts: Sequence[int], frames: int, fps: float, width: int, height: int
) -> Iterator[Tensor]:
    """Yield clips of a video in order.

    Parameters
    ----------
    path
        The video.
    starts
        First frame of each clip, counted at ``fps``, ascending; clips must not overlap.
    frames
        Length of a clip in frames.
    fps
        Frame rate of the clips. Frames are repeated or skipped to reach it, never blended.
    width, height
        Size of the clips; frames are cropped around the center to fit.

    Yields
    ------
    Tensor
        ``[frames, height, width, 3]`` float32, 0..1.

    Raises
    ------
    av.error.FFmpegError, OSError, ValueError
        If the file is damaged or holds no video.
    """
    waiting, clip = list(starts), list[Tensor]()
    for number, frame in enumerate(_at_rate(path, fps)):
        if not waiting:
            return
        if number >= waiting[0]:
            picture = torch.from_numpy(_upright(frame, "rgb24"))[None].float() / 255
            clip.append(fit_frames(picture, width, height)[0])
        if len(clip) == frames:
            yield torch.stack(clip)
            waiting.pop(0)
            clip = []


def clip_starts(thumbnails: Tensor, frames: int) -> list[int]:
    """Return the starts of consecutive clips that each lie within one shot."""
    bounds = [0, *find_cuts(thumbnails), len(thumbnails)]
    return [start for first, end in pairwise(bounds) for start in range(first, end - frames + 1, frames)]


def thumbnails_of(path: Path, fps: float) -> Tensor:
    """Return all frames of a video at a frame rate, squeezed to ``[F, 32, 32, 3]`` uint8.

    Raises
    ------
    av.error.FFmpegError, OSError, ValueError
        As in `clips_of`.
    """
    size: dict[str, Any] = {"width": THUMBNAIL, "height": THUMBNAIL, "interpolation": "AREA"}
    small = [frame.to_ndarray(format="rgb24", **size) for frame in _at_rate(path, fps)]
    if not small:
        raise ValueError(f"{path.name} holds no readable frame.")
    return torch.from_numpy(np.stack(small))


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream.")
        for frame in container.decode(video=0):
            if frame.is_corrupt:
                raise ValueError(f"{path} is damaged at frame time {frame.time}.")
            yield frame


def _at_rate(path: Path, fps: float) -> Iterator[av.VideoFrame]:
    """Yield the frame on the screen at every tick of a frame rate."""
    step, due = 1 / Fraction(fps).limit_denominator(1001), Fraction(0)
    shown: av.VideoFrame | None = None
    start = begin = end = Fraction(0)
    for frame in _decode(path):
        if frame.pts is None or frame.time_base is None:
            raise ValueError(f"{path} has frames without a timestamp.")
        time = frame.pts * frame.time_base
        if shown is None:
            start = time
        begin, end = end, time - start
        while shown is not None and due < end:
            yield shown
            due += step
        shown = frame
    end = max(end + (end - begin), step)  # the last frame lasts as long as the one before it
    while shown is not None and due < end:
        yield shown
        due += step


def _upright(frame: av.VideoFrame, pixels: str) -> np.ndarray[Any, Any]:
    """Return a frame's pixels, rotated as its file says: phones store upright videos sideways."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format=pixels), frame.rotation // 90))
