"""Scene cuts, found in thumbnails of a video's frames.

At a cut, each of the frames just before it differs from each of the frames just after it, by much more than
frames on one side differ from each other. A flash is no cut, because the scene returns after it; nor is a
fast pan, because its frames differ just as much before and after.
"""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 4
"""Frames compared on either side. A scene that returns within three frames was a flash, not a shot."""

CHANGE_REACH = 8
"""Frames on either side that determine the usual change."""

CUT_RATIO = 3.0
"""How many times the usual change the two sides must be apart."""

NOISE_FLOOR = {"pixels": 0.06, "colors": 0.25}
"""Distances, 0..1, up to which a change is sensor noise or exposure."""

COLOR_LEVELS = 8
"""Levels of each channel in the histograms."""


def find_cuts(thumbnails: Tensor) -> list[int]:
    """Return the first frame of every shot after the first.

    Two distances count: between pixels, and between color histograms, which a pan hardly changes.
    Histograms reveal a cut between two fast pans, pixels one between shots of similar colors. Dissolves
    and fades are not found.

    Parameters
    ----------
    thumbnails
        ``[F, h, w, 3]`` uint8, one small picture per frame, about 32x32.
    """
    pixels = thumbnails.flatten(1).float() / 255
    features = {"pixels": pixels, "colors": _color_shares(thumbnails)}
    found = {
        frame for name, values in features.items() for frame in _separations(values, NOISE_FLOOR[name])
    }
    return sorted(found)


def _color_shares(thumbnails: Tensor) -> Tensor:
    """Return a color histogram of each frame, ``[F, 24]``: the share of each level of each channel.

    Each value counts for its two nearest levels, so that a slight change of light moves little.
    """
    place = thumbnails.flatten(1, 2).float() / 255 * (COLOR_LEVELS - 1)
    levels = torch.arange(COLOR_LEVELS, dtype=place.dtype)
    shares = torch.stack([(1 - (place - level).abs()).clamp_min(0).mean(dim=1) for level in levels], dim=-1)
    # The shares of a channel sum to 1 and differ by at most 2; this factor makes the largest distance 1.
    return shares.flatten(1) * (shares[0].numel() / 6)


def _separations(values: Tensor, floor: float) -> list[int]:
    """Return the cuts among frames ``[F, D]``: there, all frames after are far from all before."""
    steps = (values[1:] - values[:-1]).abs().mean(dim=1)  # steps[i] leads from frame i to i + 1
    found = []
    for frame in range(1, len(values)):
        if steps[frame - 1] <= floor:
            continue
        before, after = values[max(0, frame - REACH) : frame], values[frame : frame + REACH]
        apart = float((before[:, None] - after[None]).abs().mean(dim=-1).min())
        usual = max(
            _median(steps[max(0, frame - 1 - CHANGE_REACH) : frame - 1]),
            _median(steps[frame : frame + CHANGE_REACH]),
        )
        if apart > max(floor, CUT_RATIO * usual):
            found.append(frame)
    return found


def _median(steps: Tensor) -> float:
    """Return the median change of one side, 0 if there is none."""
    return float(steps.median()) if len(steps) else 0.0
