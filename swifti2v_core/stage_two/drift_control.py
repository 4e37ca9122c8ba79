"""Drift control: finished frames keep the reference's latent statistics.

Every segment builds on generated neighbors, so a small error in brightness, color or contrast feeds
itself from segment to segment. The reference knows better: it was encoded at once, and what it says
about large areas needs no Stage II. In the authors' own clips the drift is seen as growing
sharpness (research notes on their published clips), and no paper corrects it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

CELL = 4
"""Side of the areas that are averaged, in latent pixels; z_ref, enlarged so much, has no finer detail."""

FLAT = 1e-3
"""Standard deviation below which a channel has no contrast to correct (latents have about 1)."""

MAX_GAIN = 2.0
"""Largest correction of contrast; a channel that is farther off is another picture, not drift."""


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
        ``[B, C, T, 1, 1]`` each, over the means of areas of `CELL` x `CELL` latent pixels; those at
        the right and lower border may be smaller.
    """
    flat = frames.flatten(0, 2)[:, None]
    areas = F.avg_pool2d(flat, CELL, ceil_mode=True, count_include_pad=False)
    shape = (*frames.shape[:3], 1, 1)
    mean = areas.mean(dim=(1, 2, 3)).view(shape)
    deviation = areas.std(dim=(1, 2, 3), unbiased=False).view(shape)
    return mean, deviation


def match_statistics(frames: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Bring brightness, color and contrast of finished frames back to the reference.

    Per channel and latent frame, so that a change of light in the reference survives. One gain and
    one offset for the whole frame: nothing moves, and fine detail, of which the reference has none,
    changes with the contrast around it, but is not measured.

    Parameters
    ----------
    frames
        Finished latent frames ``[B, C, T, h, w]``.
    reference
        The same latent frames of ``z_ref``.
    strength
        0..1: how far the frames are brought back, in a straight line. 0 returns ``frames``.

    Returns
    -------
    Tensor
        As ``frames``, which stay as they are.
    """
    if strength == 0:
        return frames
    mean, deviation = low_pass_statistics(frames)
    wanted_mean, wanted_deviation = low_pass_statistics(reference.to(frames))
    has_contrast = (deviation > FLAT) & (wanted_deviation > FLAT)
    ratio = (wanted_deviation / deviation.clamp_min(FLAT)).clamp(1 / MAX_GAIN, MAX_GAIN)
    gain = ratio.where(has_contrast, ratio.new_ones(()))
    # As a change of the frames, so that frames without drift come back to the last bit.
    return frames + strength * ((gain - 1) * (frames - mean) + (wanted_mean - mean))
