"""Pixel values between float frames and bytes."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(frame: Tensor) -> Tensor:
    """Return frames in 0..1 as ``uint8`` on the CPU, rounded to the nearest level.

    Raises
    ------
    ValueError
        If the frame holds NaN, which would become arbitrary bytes.
    """
    if not torch.isfinite(frame).all():
        raise ValueError("A decoded frame holds NaN or infinite values; nothing useful to save.")
    return (frame * 255 + 0.5).clamp(0, 255).to(device="cpu", dtype=torch.uint8).contiguous()
