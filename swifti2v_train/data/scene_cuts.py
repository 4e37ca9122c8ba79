"""Scene cuts, found in thumbnails of the frames of a video.

A cut separates: every one of the frames just before it differs from every one of the frames just after
it, by much more than frames on either side differ from each other. A flash does not separate, since the
scene comes back behind it; a fast pan does not stand out from its own speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 4
"""Frames looked at on either side. What comes back within three frames is a flash, not a shot."""

UNREST_REACH = 8
"""Frames on either side over which the usual change is taken."""

STANDS_OUT = 3.0
"""How much farther apart the two sides must be than frames within them usually are."""

LEAST = {"pixels": 0.06, "colors": 0.25}
"""Distances below which nothing is a cut, 0..1 each: sensor noise and changes of exposure."""

COLOR_LEVELS = 8
"""Levels of each channel in the histograms."""


def find_cuts(thumbnails: Tensor) -> list[int]:
    """Return the first frame of every shot but the first.

    Two distances are looked at: of pixels, and of the shares of colors, which a pan hardly changes. So a
    cut between two fast pans is seen by its colors, one between two shots of like colors by its pixels.
    Dissolves and fades are not found.

    Parameters
    ----------
    thumbnails
        ``[F, h, w, 3]`` uint8, one small picture per frame, about 32x32.
    """
    pixels = thumbnails.flatten(1).float() / 255
    features = {"pixels": pixels, "colors": _color_shares(thumbnails)}
    found = {frame for name, values in features.items() for frame in _separations(values, LEAST[name])}
    return sorted(found)


def _color_shares(thumbnails: Tensor) -> Tensor:
    """Return how much of every frame has each level of each channel, ``[F, 24]``.

    Each value is divided between the two nearest levels, so that a slight change of light moves little.
    """
    place = thumbnails.flatten(1, 2).float() / 255 * (COLOR_LEVELS - 1)
    levels = torch.arange(COLOR_LEVELS, dtype=place.dtype)
    shares = torch.stack([(1 - (place - level).abs()).clamp_min(0).mean(dim=1) for level in levels], dim=-1)
    # Shares of one channel add to 1 and differ by at most 2; six of them make the largest distance 1.
    return shares.flatten(1) * (shares[0].numel() / 6)


def _separations(values: Tensor, least: float) -> list[int]:
    """Return where the frames ``[F, D]`` after a place are all far from those before it."""
    steps = (values[1:] - values[:-1]).abs().mean(dim=1)  # steps[i] leads from frame i to i + 1
    found = []
    for frame in range(1, len(values)):
        if steps[frame - 1] <= least:
            continue
        before, after = values[max(0, frame - REACH) : frame], values[frame : frame + REACH]
        apart = float((before[:, None] - after[None]).abs().mean(dim=-1).min())
        unrest = max(
            _usual(steps[max(0, frame - 1 - UNREST_REACH) : frame - 1]),
            _usual(steps[frame : frame + UNREST_REACH]),
        )
        if apart > max(least, STANDS_OUT * unrest):
            found.append(frame)
    return found


def _usual(steps: Tensor) -> float:
    """Return the median change of one side; 0 where there is none."""
    return float(steps.median()) if len(steps) else 0.0
