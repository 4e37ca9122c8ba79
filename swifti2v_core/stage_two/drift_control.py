"""Drift control: later segments keep the latent statistics that the first one has beside the reference.

Every segment builds on generated neighbors, so a small error in brightness, color or contrast is
amplified from segment to segment. The reference does not drift: it was encoded in one pass, and Stage II
does not need to change its large-scale content. In the authors' own clips, drift appears as growing
sharpness (research notes on their published clips); no paper corrects it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

AREA_SIZE = 4
"""Side of the averaged areas in latent pixels; an upscaled z_ref has no finer detail."""

TOLERANCE = 0.25
"""Largest difference from the first segment that content explains: a fraction of the contrast, and as much
of a standard deviation in brightness. In sharp clips without drift (`benchmarks/quality/drift_report.py`),
99 of 100 channels and frames differ by less than 0.2 in contrast, and in 17 of 18 clips by less than 0.25
in brightness."""

MIN_DEVIATION = 1e-3
"""Standard deviation below which a channel has no contrast to correct (latents have about 1)."""

MAX_GAIN = 2.0
"""Largest correction of contrast; a larger difference is a change of content, not drift."""


def check_drift_control(strength: float) -> None:
    """Raise ValueError unless ``strength`` lies in 0..1."""
    if not 0 <= strength <= 1:  # also false for NaN
        nearest = 1 if strength > 1 else 0
        raise ValueError(
            f"drift_control is {strength:g}, but must be from 0 to 1; the nearest valid value is {nearest}."
        )


def low_pass_statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the low-pass part of every channel of every frame.

    Parameters
    ----------
    frames
        ``[B, C, T, h, w]``.

    Returns
    -------
    tuple of Tensor
        ``[B, C, T, 1, 1]`` each, over the means of areas of `AREA_SIZE` x `AREA_SIZE` latent pixels; areas
        at the right and lower border may be smaller.
    """
    flat = frames.flatten(0, 2)[:, None]
    areas = F.avg_pool2d(flat, AREA_SIZE, ceil_mode=True, count_include_pad=False)
    shape = (*frames.shape[:3], 1, 1)
    mean = areas.mean(dim=(1, 2, 3)).view(shape)
    deviation = areas.std(dim=(1, 2, 3), unbiased=False).view(shape)
    return mean, deviation


@dataclass(frozen=True)
class Offset:
    """What separates finished frames from the reference, per channel, ``[B, C, T, 1, 1]`` each.

    Attributes
    ----------
    contrast
        Logarithm of the reference's contrast relative to that of the frames; 0 where one of them has none.
    brightness
        Mean of the reference minus that of the frames.
    """

    contrast: Tensor
    brightness: Tensor

    def mean(self) -> Offset:
        """Return the mean over all latent frames, ``[B, C, 1, 1, 1]`` each."""
        return Offset(self.contrast.mean(dim=2, keepdim=True), self.brightness.mean(dim=2, keepdim=True))


def measure_offset(frames: Tensor, reference: Tensor) -> Offset:
    """Return the offset of finished latent frames from those of the reference, ``[B, C, T, h, w]`` each."""
    mean, deviation = low_pass_statistics(frames)
    wanted_mean, wanted_deviation = low_pass_statistics(reference.to(frames))
    has_contrast = (deviation > MIN_DEVIATION) & (wanted_deviation > MIN_DEVIATION)
    contrast = (wanted_deviation / deviation.clamp_min(MIN_DEVIATION)).clamp_min(MIN_DEVIATION).log()
    return Offset(contrast.where(has_contrast, contrast.new_zeros(())), wanted_mean - mean)


def match_statistics(frames: Tensor, reference: Tensor, first: Offset, strength: float) -> Tensor:
    """Match brightness, color and contrast of later frames to the reference, as the first segment does.

    A sharp result differs from its soft reference even without drift: channels that carry fine detail have
    large-scale statistics of their own. The first segment, right after the photo, shows that difference;
    what later ones add to it beyond `TOLERANCE` is drift. The correction is per channel and latent frame,
    so that a change of light in the reference survives. It is one gain and one shift for the whole frame,
    so nothing moves.

    Parameters
    ----------
    frames
        Finished latent frames ``[B, C, T, h, w]``.
    reference
        The same latent frames of ``z_ref``.
    first
        Offset of the first segment's frames; its mean over them counts.
    strength
        Linear weight of the correction, 0..1. 0 returns ``frames``.

    Returns
    -------
    Tensor
        The corrected frames, in the shape of ``frames``, which are not changed; without drift, their bits.
    """
    if strength == 0:
        return frames
    mean, _ = low_pass_statistics(frames)
    _, spread = low_pass_statistics(reference.to(frames))
    offset, usual = measure_offset(frames, reference), first.mean()
    contrast = _beyond(offset.contrast - usual.contrast, torch.full_like(spread, TOLERANCE))
    gain = contrast.clamp(-math.log(MAX_GAIN), math.log(MAX_GAIN)).exp()
    shift = _beyond(offset.brightness - usual.brightness, TOLERANCE * spread)
    return frames + strength * ((gain - 1) * (frames - mean) + shift)


def _beyond(value: Tensor, tolerance: Tensor) -> Tensor:
    """Return how far values lie outside plus or minus a tolerance."""
    return value - value.clamp(-tolerance, tolerance)
