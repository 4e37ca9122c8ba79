"""The hybrid reference: the upsampled low-resolution motion with the photo as frame 0.

SwiftI2V, method figure ("Hybrid Reference Construction"): the Stage I clip is upsampled and its
first frame replaced by the input image; the encoded result is ``z_ref``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..geometry import FRAMES_PER_LATENT
from ..images import FRAMINGS, Fit, Kernel, fit_frames
from ..progress import Report, silent
from .color_match import FIRST_FRAMES, SAMPLES, color_transfer, match_color


class Frames(Protocol):
    """A tensor of frames ``[F, H, W, C]``, or what makes them when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """F, H, W and C."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Tensor:
        """Return the frames of a slice or of a list of ascending numbers."""


KEYFRAME_CLIP_FRAMES = 1 + FRAMES_PER_LATENT
"""Frames that `keyframe_chunks` yields in total."""


@dataclass(frozen=True)
class ReferenceSettings:
    """Size, length and framing of a reference.

    Attributes
    ----------
    width, height
        Size of the result in pixels.
    frames
        Number of frames of the result, 4n+1.
    fit
        How photo and motion are fitted to the proportions of the result, see `images.fit_frames`.
    kernel
        Kernel that upsamples the motion.
    """

    width: int
    height: int
    frames: int
    fit: Fit = "crop"
    kernel: Kernel = "bicubic"


def resample_indices(count: int, target: int) -> list[int]:
    """Return the indices that resample ``count`` frames to ``target`` frames, evenly spaced in time.

    First and last frame are kept. Frames are repeated or skipped, never blended: a blend shows moving
    objects twice, and Stage II would draw both.
    """
    if target == 1:
        return [0]
    return [(2 * i * (count - 1) + target - 1) // (2 * (target - 1)) for i in range(target)]


def reference_chunks(
    photo: Tensor,
    motion: Frames,
    settings: ReferenceSettings,
    color_match: bool = False,
    report: Report = silent,
    keyframes: Mapping[int, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Build the pixel reference piece by piece, as a causal video autoencoder takes it.

    Parameters
    ----------
    photo
        ``[1, H, W, C]`` float, 0..1, any size.
    motion
        ``[F, h, w, C]`` float, 0..1, any size; resampled in time to ``settings.frames``.
    settings
        Size, length and framing of the result.
    color_match
        Give the motion the photo's color statistics, see `color_match.color_transfer`.
    report
        Called after each piece, with the frames yielded so far.
    keyframes
        More photos, ``[1, H, W, C]`` each, keyed by the frame of the result that they replace.

    Yields
    ------
    Tensor
        First the photo alone, ``[1, height, width, 3]``, then four frames at a time.
    """
    width, height = settings.width, settings.height
    motion_aspect = motion.shape[2] / motion.shape[1]
    fitted_photo = fit_photo(photo, motion_aspect, settings)
    yield fitted_photo
    report(1)
    indices = resample_indices(motion.shape[0], settings.frames)[1:]
    transfer = None
    if color_match:
        first = motion[:FIRST_FRAMES].to(photo.device)
        first = fit_frames(first, width, height, settings.fit, settings.kernel)
        sample = motion[resample_indices(len(motion), min(len(motion), SAMPLES))]
        transfer = color_transfer(first, fitted_photo, sample[..., :3].to(photo.device))
    for start in range(0, len(indices), FRAMES_PER_LATENT):
        chunk = motion[indices[start : start + FRAMES_PER_LATENT]].to(photo.device)
        chunk = fit_frames(chunk, width, height, settings.fit, settings.kernel)
        chunk = chunk if transfer is None else match_color(chunk, *transfer)
        for place, number in enumerate(range(start + 1, start + 1 + len(chunk))):
            if keyframes is not None and number in keyframes:
                chunk[place] = fit_photo(keyframes[number], motion_aspect, settings)[0]
        yield chunk
        report(start + 1 + len(chunk))


def fit_photo(photo: Tensor, motion_aspect: float, settings: ReferenceSettings) -> Tensor:
    """Return a photo ``[1, H, W, C]`` as a frame of the result, ``[1, height, width, 3]``.

    Stage I saw the photo in the motion's proportions (width over height); the same framing here aligns it
    with the motion.
    """
    framed = FRAMINGS[settings.fit](photo, motion_aspect)
    return fit_frames(framed, settings.width, settings.height, settings.fit)


def keyframe_chunks(photo: Tensor, motion_aspect: float, settings: ReferenceSettings) -> Iterator[Tensor]:
    """Yield a clip of a still photo, as a causal video autoencoder takes it.

    Latent frame 1 of this clip encodes the photo as a moment of a video. The latent of a photo alone is
    different, and the model has seen it at time 0 only.

    Parameters
    ----------
    photo
        ``[1, H, W, C]`` float, 0..1.
    motion_aspect, settings
        As in `fit_photo`.
    """
    still = fit_photo(photo, motion_aspect, settings)
    yield still
    yield still.expand(FRAMES_PER_LATENT, -1, -1, -1)


def with_anchor(latent: Tensor, photo_latent: Tensor) -> Tensor:
    """Return a clip's latent with the photo's own latent as frame 0.

    A causal autoencoder encodes the same frame 0 with or without the rest of the clip. Others, such as
    the small TAEHV family, mix later frames into it; the anchor must be the photo alone.

    Parameters
    ----------
    latent
        ``[B, C, T, h, w]``, the whole reference.
    photo_latent
        ``[B, C, 1, h, w]``, the photo encoded alone.
    """
    return torch.cat((photo_latent[:, :, :1], latent[:, :, 1:]), dim=2)
