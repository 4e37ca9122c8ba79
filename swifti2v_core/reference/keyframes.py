"""Keyframes: more photos at chosen times, which the video passes through.

A keyframe is used twice: as a frame of the reference, and as a clean latent frame in the windows near it
(`segments.plan_segments`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import latent_frame_of
from ..text import shortened


def parse_keyframe_times(text: str, count: int, frames: int) -> list[int]:
    """Parse the frame numbers of keyframes, such as ``"40, 80"``.

    Parameters
    ----------
    text
        Numbers from 1 to ``frames - 1``, ascending, at most one per latent frame (1 to 4, 5 to 8, …);
        empty spaces the keyframes evenly, the last one at the end.
    count
        Number of keyframes, at least 1.
    frames
        Number of frames of the clip, 4n+1.

    Raises
    ------
    ValueError
        If the text is not one valid number per keyframe, or the clip has too few latent frames.
    """
    most = latent_frame_of(frames - 1)
    if count > most:
        raise ValueError(
            f"There are {count} keyframes, but a clip of {frames} frames has room for {most}, one "
            f"every 4 frames; the nearest valid number is {most}."
        )
    numbers = read_frame_numbers(text, frames)
    if numbers and len(numbers) != count:
        raise ValueError(
            f'keyframe_times is "{shortened(text)}", {len(numbers)} numbers for {count} keyframes; '
            f'give one for each, for example "{_listed(_spread(count, frames))}".'
        )
    return numbers or _spread(count, frames)


def read_frame_numbers(text: str, frames: int) -> list[int]:
    """Return the numbers in a text of frame numbers, see `parse_keyframe_times`, none if it is empty.

    Raises
    ------
    ValueError
        If they are no numbers, or not of different latent frames of the clip in ascending order.
    """
    parts, quoted = text.replace(",", " ").split(), shortened(text)
    count = min(max(1, len(parts)), latent_frame_of(frames - 1))
    example = _listed(_spread(count, frames))
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise ValueError(
            f'keyframe_times is "{quoted}", but must be frame numbers separated by commas, '
            f'for example "{example}".'
        ) from None
    ascending = all(latent_frame_of(a) < latent_frame_of(b) for a, b in pairwise(numbers))
    if numbers and not (ascending and numbers[0] >= 1 and numbers[-1] < frames):
        raise ValueError(
            f'keyframe_times is "{quoted}", but must ascend from at least 1 to at most {frames - 1}, one '
            f'per latent frame (1 to 4, 5 to 8, and so on), for example "{example}".'
        )
    return numbers


def _spread(count: int, frames: int) -> list[int]:
    """Return frame numbers for some keyframes, evenly spaced, the last one at the end."""
    return [(frames - 1) * (number + 1) // count for number in range(count)]


def _listed(numbers: list[int]) -> str:
    return shortened(", ".join(map(str, numbers)))


def append_frames(latents: Tensor, keyframes: Tensor) -> Tensor:
    """Return latents ``[B, C, T, h, w]`` with keyframes ``[1, C, K, h, w]`` appended to every clip."""
    return torch.cat((latents, keyframes.to(latents).expand(len(latents), -1, -1, -1, -1)), dim=2)


def append_zero_noise(noise: Tensor, keyframes: Tensor) -> Tensor:
    """Return noise ``[B, C, T, h, w]`` with zeros appended for the keyframes, which stay clean."""
    return F.pad(noise, (0, 0, 0, 0, 0, keyframes.shape[2]))
