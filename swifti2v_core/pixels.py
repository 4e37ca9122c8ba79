"""Pixel values between float frames and bytes, and how long loops over frames report."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Report = Callable[[int], None]
"""Called with the number of frames done; may raise to stop the loop."""


def silent(done: int) -> None:
    """Report nothing."""


def after(report: Report, start: int) -> Report:
    """Return the report of a loop that begins when ``start`` frames are done."""

    def report_sum(done: int) -> None:
        report(start + done)

    return report_sum


def to_bytes(frames: Tensor) -> Tensor:
    """Return frames of 0..1 as ``uint8`` on their own device, rounded to the nearest level."""
    return (frames * 255 + 0.5).clamp_(0, 255).to(torch.uint8)


class FiniteCheck:
    """Looks for NaN and infinite values without making the program wait for the device.

    Parameters
    ----------
    device
        Where the values will be.
    """

    def __init__(self, device: torch.device) -> None:
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def see(self, values: Tensor) -> None:
        """Note whether all ``values`` are finite."""
        self._finite &= torch.isfinite(values).all()

    def verify(self) -> None:
        """Raise ValueError if any value seen was not; waits for the device."""
        if not self._finite:
            raise ValueError(
                "The decoded frames hold NaN or infinite values; start ComfyUI with --fp32-vae, or look "
                "for the node that made the latent."
            )
