"""Drift control: finished frames keep the reference's latent statistics.

Every segment builds on generated neighbors, so a small error in brightness, color or contrast is
amplified from segment to segment. The reference does not drift: it was encoded in one pass, and Stage II
does not need to change its large-scale content. In the authors' own clips, drift appears as growing
sharpness (research notes on their published clips); no paper corrects it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

AREA_SIZE = 4
"""Side of the averaged areas in latent pixels; an upscaled z_ref has no finer detail."""

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


def match_statistics(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Match brightness, color and contrast of finished frames to the reference.

    The correction is per channel and latent frame, so that a change of light in the reference survives. It
    is one gain and one offset for the whole frame: nothing moves, and fine detail, which the reference
    lacks, is scaled with its surroundings but does not enter the statistics.

    Parameters
    ----------
    frames
        Finished latent frames ``[B, C, T, h, w]``.
    reference
        The same latent frames of ``z_ref``.
    strength
        Linear weight of the correction, 0..1. 0 returns ``frames``.

    Returns
    -------
    Tensor
        The corrected frames, in the shape of ``frames``, which are not changed.
    """
    if strength == 0:
        return frames
    mean, deviation = low_pass_statistics(frames)
    wanted_mean, wanted_deviation = low_pass_statistics(reference.to(frames))
    has_contrast = (deviation > MIN_DEVIATION) & (wanted_deviation > MIN_DEVIATION)
    ratio = (wanted_deviation / deviation.clamp_min(MIN_DEVIATION)).clamp(1 / MAX_GAIN, MAX_GAIN)
    gain = ratio.where(has_contrast, ratio.new_ones(()))
    # Added to the frames, so that frames without drift are returned bit for bit.
    return frames + strength * ((gain - 1) * (frames - mean) + (wanted_mean - mean))
