"""Photos in, contact sheets out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..geometry import FRAMES_PER_LATENT
from .autoencoder import VideoAutoencoder
from .trainer import Draw

PHOTOS = (".jpg", ".jpeg", ".png", ".webp")
SHEET_WIDTH = 1600
COLUMNS = 5


def find_photos(sources: Sequence[str]) -> list[Path]:
    """Return the photos that files and folders hold, sorted by path.

    Raises
    ------
    ValueError
        If a source does not exist, or there is no photo.
    """
    found: set[Path] = set()
    for source in map(Path, sources):
        if not source.exists():
            raise ValueError(f"The source {source} does not exist; name a photo or a folder of photos.")
        inside = source.rglob("*") if source.is_dir() else [source]
        found |= {path for path in inside if path.suffix.lower() in PHOTOS}
    if not found:
        raise ValueError(
            f"The sources {', '.join(sources) or '(none)'} hold no photo; name files or folders with "
            f"{', '.join(PHOTOS)}."
        )
    return sorted(found)


def read_photo(path: Path) -> Tensor:
    """Return a photo ``[1, H, W, 3]`` float32, 0..1, turned as its camera says."""
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    return torch.from_numpy(np.array(upright)).float()[None] / 255


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
    latents = latents[:, :COLUMNS].float().cpu()
    if autoencoder is None:
        return (latents[:3].movedim(1, 0) / 6 + 0.5).clamp(0, 1)
    return autoencoder.decode(latents[None])[0, :, ::FRAMES_PER_LATENT].movedim(1, 0)
