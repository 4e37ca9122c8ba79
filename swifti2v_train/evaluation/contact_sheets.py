"""Contact sheets: of an evaluated clip's frames in a file, and of latents while a training runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from swifti2v_core.geometry import FRAMES_PER_LATENT
from swifti2v_core.images import to_bytes

if TYPE_CHECKING:  # sheets of finished clips need neither accelerate nor diffusers
    from ..loop.trainer import Draw
    from ..networks.autoencoder import VideoAutoencoder

LABEL_HEIGHT = 14

LATENT_SHEET_WIDTH = 1600
LATENT_COLUMNS = 5
LATENT_CELLS = 24, 40
"""Latent rows and columns shown, from the center: all processes wait while the CPU decodes."""


def strip(label: str, clip: Tensor, columns: int = 5, cell_width: int = 240) -> Image.Image:
    """Return evenly spaced frames of a clip under a label, including the first and the last one.

    Parameters
    ----------
    label
        Name of the clip.
    clip
        ``[F, H, W, 3]`` in 0..1.
    columns, cell_width
        Number of frames, at least 2, and the width of each in pixels.
    """
    picked = [round(i * (len(clip) - 1) / (columns - 1)) for i in range(columns)]
    height = round(cell_width * clip.shape[1] / clip.shape[2])
    made = Image.new("RGB", (columns * cell_width, height + LABEL_HEIGHT), "white")
    ImageDraw.Draw(made).text((4, 0), f"{label}: frames {', '.join(map(str, picked))}", fill="black")
    for column, frame in enumerate(picked):
        cell = Image.fromarray(to_bytes(clip[frame]).cpu().numpy())
        cell = cell.resize((cell_width, height), Image.Resampling.LANCZOS)
        made.paste(cell, (column * cell_width, LABEL_HEIGHT))
    return made


def save_sheet(strips: Sequence[Image.Image], path: Path) -> None:
    """Save strips of equal width, stacked from top to bottom."""
    sheet = Image.new("RGB", (strips[0].width, sum(one.height for one in strips)), "white")
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    sheet.save(path, quality=80)


def latent_drawer(autoencoder: VideoAutoencoder | None) -> Draw:
    """Return a function that draws latents: one row per clip, the last frame of each latent frame.

    Parameters
    ----------
    autoencoder
        Decodes the latents; None shows three of their channels instead.
    """

    def draw(rows: Sequence[Tensor]) -> Tensor:
        pictures = [_latent_frames(latents, autoencoder) for latents in rows]
        sheet = torch.cat([torch.cat(list(frames), dim=2) for frames in pictures], dim=1)
        scale = min(1.0, LATENT_SHEET_WIDTH / sheet.shape[2])
        small = torch.nn.functional.interpolate(sheet[None], scale_factor=scale, mode="area")
        return small[0].movedim(0, -1).clamp(0, 1)

    return draw


@torch.no_grad()
def _latent_frames(latents: Tensor, autoencoder: VideoAutoencoder | None) -> Tensor:
    """Return the shown frames ``[n, 3, H, W]`` of latents ``[C, T, h, w]``."""
    rows, columns = LATENT_CELLS
    top, left = (max(0, s - most) // 2 for s, most in zip(latents.shape[2:], LATENT_CELLS, strict=True))
    latents = latents[:, :LATENT_COLUMNS, top : top + rows, left : left + columns].float().cpu()
    if autoencoder is None:
        return (latents[:3].movedim(1, 0) / 6 + 0.5).clamp(0, 1)
    return autoencoder.decode(latents[None])[0, :, ::FRAMES_PER_LATENT].movedim(1, 0)
