"""Antialiased resizing and framing of images in the host's layout, ``[F, H, W, 3]`` in 0..1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Literal["bicubic", "lanczos"]
Fit = Literal["crop", "pad"]

LANCZOS_LOBES = 3

WORD_LEVELS, WORD_OFFSET = 65535, 32768
"""How `to_words` counts: from -32768 for 0, because PyTorch computes little with unsigned words."""


def resize(frames: Tensor, width: int, height: int, kernel: Kernel = "bicubic") -> Tensor:
    """Resize frames with an antialiased kernel.

    Parameters
    ----------
    frames
        ``[F, H, W, 3]`` float, 0..1.
    width, height
        Size of the result in pixels.
    kernel
        ``"bicubic"`` (a = -0.5 as in PIL) or ``"lanczos"`` (three lobes, slightly sharper).

    Returns
    -------
    Tensor
        ``[F, height, width, 3]`` clamped to 0..1.
    """
    if frames.shape[1:3] == (height, width):
        return frames.clamp(0, 1)
    resized = RESIZERS[kernel](frames.movedim(-1, 1), height, width)
    return resized.clamp_(0, 1).movedim(1, -1)


def _bicubic(frames: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def _lanczos(frames: Tensor, height: int, width: int) -> Tensor:
    rows = lanczos_weights(frames.shape[-2], height).to(frames)
    columns = lanczos_weights(frames.shape[-1], width).to(frames)
    return rows @ frames @ columns.T


RESIZERS: dict[Kernel, Callable[[Tensor, int, int], Tensor]] = {
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}


def lanczos_weights(size: int, target: int) -> Tensor:
    """Return the ``[target, size]`` matrix that resamples one axis with a Lanczos-3 kernel.

    The kernel widens when downsampling (antialias) and is renormalized at the borders, as in PIL.
    """
    scale = size / target
    support = max(1.0, scale)
    centers = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
    offsets = torch.arange(size, dtype=torch.float64) - centers[:, None]
    distance = offsets / support
    weights = torch.sinc(distance) * torch.sinc(distance / LANCZOS_LOBES)
    weights = torch.where(distance.abs() < LANCZOS_LOBES, weights, torch.zeros_like(weights))
    return (weights / weights.sum(dim=1, keepdim=True)).to(torch.float32)


def fit_frames(
    frames: Tensor, width: int, height: int, fit: Fit = "crop", kernel: Kernel = "bicubic"
) -> Tensor:
    """Resize frames to a size without changing their proportions.

    Parameters
    ----------
    frames
        ``[F, H, W, C]`` float, 0..1; channels after the third (alpha) are dropped.
    width, height
        Size of the result in pixels.
    fit
        ``"crop"`` covers the size and cuts the excess, centered; ``"pad"`` shows everything and fills
        the rest with black.
    kernel
        See `resize`.

    Returns
    -------
    Tensor
        ``[F, height, width, 3]`` float32, 0..1.
    """
    return FITS[fit](frames[..., :3].float(), width, height, kernel)


def cut_to_aspect(frames: Tensor, aspect: float) -> Tensor:
    """Return the largest centered part of frames with an aspect (width over height), as a view."""
    height, width = frames.shape[1:3]
    keep_width = min(width, max(1, round(height * aspect)))
    keep_height = min(height, max(1, round(width / aspect)))
    left, top = (width - keep_width) // 2, (height - keep_height) // 2
    return frames[:, top : top + keep_height, left : left + keep_width]


def extend_to_aspect(frames: Tensor, aspect: float) -> Tensor:
    """Return frames with black added on two sides, centered, to reach an aspect."""
    height, width = frames.shape[1:3]
    add_width = max(0, round(height * aspect) - width)
    add_height = max(0, round(width / aspect) - height)
    left, top = add_width // 2, add_height // 2
    return F.pad(frames, (0, 0, left, add_width - left, top, add_height - top))


FRAMINGS: dict[Fit, Callable[[Tensor, float], Tensor]] = {"crop": cut_to_aspect, "pad": extend_to_aspect}
"""How each fit reaches an aspect without resizing."""


def _crop(frames: Tensor, width: int, height: int, kernel: Kernel) -> Tensor:
    # Crop first: a tall photo would otherwise be enlarged far beyond the target.
    return resize(cut_to_aspect(frames, width / height), width, height, kernel)


def _pad(frames: Tensor, width: int, height: int, kernel: Kernel) -> Tensor:
    scale = min(width / frames.shape[2], height / frames.shape[1])
    inner_width = min(width, max(1, round(frames.shape[2] * scale)))
    inner_height = min(height, max(1, round(frames.shape[1] * scale)))
    inner = resize(frames, inner_width, inner_height, kernel)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    right, bottom = width - inner_width - left, height - inner_height - top
    return F.pad(inner, (0, 0, left, right, top, bottom))


FITS: dict[Fit, Callable[[Tensor, int, int, Kernel], Tensor]] = {"crop": _crop, "pad": _pad}


def to_bytes(frames: Tensor) -> Tensor:
    """Return frames of 0..1 as ``uint8`` on their own device, rounded to the nearest level."""
    return (frames * 255 + 0.5).clamp_(0, 255).to(torch.uint8)


def to_words(frames: Tensor) -> Tensor:
    """Return frames of 0..1 as ``int16`` on their own device, -32768 to 32767, rounded."""
    return (frames * WORD_LEVELS - WORD_OFFSET + 0.5).floor_().clamp_(-32768, 32767).to(torch.int16)


class FiniteCheck:
    """Detects NaN and infinite values without synchronizing with the device for every tensor.

    Parameters
    ----------
    device
        Device of the values.
    """

    def __init__(self, device: torch.device) -> None:
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def update(self, values: Tensor) -> None:
        """Include ``values`` in the check."""
        self._finite &= torch.isfinite(values).all()

    def passed(self) -> bool:
        """Return whether all values so far were finite; synchronizes with the device."""
        return bool(self._finite)
