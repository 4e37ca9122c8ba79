"""Color match: the photo's brightness, color and contrast for a motion clip with a cast.

A cast is the same in all frames, so it is measured where the clip still shows what the photo shows: in
frame 0, or in the median of the first frames where frame 0 is unlike them. A fade is no cast: what the
first frames lack, later ones may already have, and would have twice.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..images import resize

logger = logging.getLogger("SwiftI2V")

FIRST_FRAMES = 5
"""Frames that are measured, a third of a second."""

MAX_GAIN = 2.0
"""Largest change of contrast; a larger difference is another picture."""

STEADY_CONTRAST, STEADY_BRIGHTNESS = 1.25, 0.1
"""Ratio and difference by which measured frames may differ from their median."""

MIN_DEVIATION = 1e-4
"""Standard deviation up to which a channel is flat: it has no contrast to change."""

SAMPLES = 9
"""Frames from the whole clip in which clipped values are counted."""

CLIPPED = 0.05
"""Part of a frame's values that the match may clip to black or white beyond those that were."""

STRENGTHS = (1.0, 0.75, 0.5, 0.25)
"""Parts of the match that are tried until it clips no more."""


def match_color(frames: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return ``frames * gain + offset`` per channel, clamped to 0..1."""
    return (frames * gain + offset).clamp_(0, 1)


def color_transfer(first: Tensor, photo: Tensor, clip: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the per-channel gain and offset that give a motion clip the photo's colors.

    The log says what was found.

    Parameters
    ----------
    first
        First frames of the clip, ``[n, h, w, 3]``, at most `FIRST_FRAMES`.
    photo
        ``[1, H, W, 3]``, the photo with the same framing.
    clip
        Frames from the whole clip, ``[n, h', w', 3]``, `SAMPLES` are enough.

    Returns
    -------
    tuple of Tensor or None
        Gain and offset, ``[3]`` each, the same for every frame, so that a change of light in the clip
        survives. None where the clip stays as it is.
    """
    pixels = first.flatten(1, 2)
    means, deviations = pixels.mean(dim=1), pixels.std(dim=1)
    later = means[1:], deviations[1:]  # frame 0 alone may be a flash
    if len(first) > 1 and not _alike(*later, *(values.median(dim=0).values for values in later)):
        logger.info("color_match: the clip begins with a fade or a cut, so its colors stay as they are.")
        return None
    small = resize(photo, first.shape[2], first.shape[1]).flatten(0, 2)
    wanted_mean, wanted = small.mean(dim=0), small.std(dim=0)
    mean, deviation = means.median(dim=0).values, deviations.median(dim=0).values
    if _alike(means[:1], deviations[:1], mean, deviation):
        mean, deviation = means[0], deviations[0]  # the moment of the photo
    # A flat channel has no deviation to scale; it is only shifted.
    ratio = (wanted / deviation.clamp_min(MIN_DEVIATION)).clamp(1 / MAX_GAIN, MAX_GAIN)
    gain = ratio.where(deviation > MIN_DEVIATION, ratio.new_ones(()))
    return _weakened(gain, wanted_mean - mean * gain, clip)


def _alike(means: Tensor, deviations: Tensor, mean: Tensor, deviation: Tensor) -> bool:
    """Return whether frames, ``[n, 3]`` each, have about one brightness and contrast, ``[3]`` each."""
    ratio = deviations.clamp_min(MIN_DEVIATION) / deviation.clamp_min(MIN_DEVIATION)
    contrast = torch.maximum(ratio, 1 / ratio).max()
    return bool(contrast <= STEADY_CONTRAST and (means - mean).abs().max() <= STEADY_BRIGHTNESS)


def _weakened(gain: Tensor, offset: Tensor, clip: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return as much of a transfer as clips few values of any frame, None for nothing of it."""
    clip = clip.float()
    before = _clipped(clip)
    for strength in STRENGTHS:
        part = 1 + strength * (gain - 1), strength * offset
        if (_clipped(clip * part[0] + part[1]) - before).max() <= CLIPPED:
            logger.info(
                "color_match: contrast x %s, brightness %s (red, green, blue)%s",
                " ".join(f"{value:.2f}" for value in part[0].tolist()),
                " ".join(f"{value:+.2f}" for value in part[1].tolist()),
                "" if strength == 1 else f"; {strength:.0%} of the match, more would clip later frames",
            )
            return part
    logger.info("color_match: it would turn later frames black or white, so the colors stay as they are.")
    return None


def _clipped(frames: Tensor) -> Tensor:
    """Return the part of every frame's values that black or white cuts, ``[n]``."""
    return ((frames <= 0) | (frames >= 1)).flatten(1).float().mean(dim=1)
