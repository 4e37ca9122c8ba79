"""Contact sheets of latents, while a training runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swifti2v_core.geometry import FRAMES_PER_LATENT

from ..loop.trainer import Draw
from ..networks.autoencoder import VideoAutoencoder

SHEET_WIDTH = 1600
COLUMNS = 5

CELLS = 24, 40
"""Latent rows and columns that are shown, from the middle: the CPU decodes while all processes wait."""


def drawer(autoencoder: VideoAutoencoder | None) -> Draw:
    """Return what draws contact sheets: one row of frames per clip, the last of each latent frame.

    Parameters
    ----------
    autoencoder
        Decodes the latents; None: three of their channels are shown instead.
    """

    def draw(rows: Sequence[Tensor]) -> Tensor:
        pictures = [_frames(latents, autoencoder) for latents in rows]
        sheet = torch.cat([torch.cat(list(frames), dim=2) for frames in pictures], dim=1)
        scale = min(1.0, SHEET_WIDTH / sheet.shape[2])
        small = torch.nn.functional.interpolate(sheet[None], scale_factor=scale, mode="area")
        return small[0].movedim(0, -1).clamp(0, 1)

    return draw


@torch.no_grad()
def _frames(latents: Tensor, autoencoder: VideoAutoencoder | None) -> Tensor:
    """Return some frames of a clip, ``[n, 3, H, W]``, of latents ``[C, T, h, w]``."""
    top, left = (max(0, s - most) // 2 for s, most in zip(latents.shape[2:], CELLS, strict=True))
    latents = latents[:, :COLUMNS, top : top + CELLS[0], left : left + CELLS[1]].float().cpu()
    if autoencoder is None:
        return (latents[:3].movedim(1, 0) / 6 + 0.5).clamp(0, 1)
    return autoencoder.decode(latents[None])[0, :, ::FRAMES_PER_LATENT].movedim(1, 0)
