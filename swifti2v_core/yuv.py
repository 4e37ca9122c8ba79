"""16-bit RGB frames to 10-bit Y'CbCr 4:2:0 by the standard's formula.

FFmpeg's converter makes gray up to 4 levels of 10 bits too bright.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .images import WORD_LEVELS, WORD_OFFSET

RED, GREEN, BLUE = 0.2126, 0.7152, 0.0722
"""Shares of the colors in luma, ITU-R BT.709-6, item 3.2."""

BLACK, GRAY = 64, 512
"""Levels of black and of no color with 10 bits and narrow range, BT.709-6, items 3.4 and 4.6."""

LUMA_LEVELS, CHROMA_LEVELS = 876, 896
"""Levels from black to white, and from one end of a color difference to the other."""


def to_yuv420_10(frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a frame as 10-bit planes of BT.709, each value rounded to its nearest level.

    Parameters
    ----------
    frame
        ``[H, W, 3]`` int16 as `images.to_words` makes it, with even sides.

    Returns
    -------
    tuple of Tensor
        Luma ``[H, W]``, Cb and Cr ``[H / 2, W / 2]``, int16. A color sample lies between two rows and on
        the left one of two columns, the default of H.264 and HEVC.
    """
    red, green, blue = frame.movedim(-1, 0).contiguous().float()
    luma = (RED * red).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)
    small = _halved(luma)
    return (
        _as_levels(luma, LUMA_LEVELS, BLACK + LUMA_LEVELS * WORD_OFFSET / WORD_LEVELS),
        _as_levels(_halved(blue).sub_(small), CHROMA_LEVELS / (2 * (1 - BLUE)), GRAY),
        _as_levels(_halved(red).sub_(small), CHROMA_LEVELS / (2 * (1 - RED)), GRAY),
    )


def _as_levels(words: Tensor, levels: float, zero: float) -> Tensor:
    """Scale words in place, rounded, so that their whole range gives some levels."""
    return words.mul_(levels / WORD_LEVELS).add_(zero).round_().to(torch.int16)


def _halved(plane: Tensor) -> Tensor:
    """Average pairs of rows, and each left column with its neighbors by 1/4, 1/2, 1/4."""
    rows = plane[0::2] + plane[1::2]
    left, right = rows[:, 0::2], rows[:, 1::2]
    before = torch.cat((left[:, :1], right[:, :-1]), dim=1)
    return (before + 2 * left + right) / 8
