"""Pixel values between float frames and bytes, and how long loops over frames report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Report = Callable[[int], None]
"""Called with the number of frames done; may raise to stop the loop."""


def silent(done: int) -> None:
    """Report nothing."""


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
