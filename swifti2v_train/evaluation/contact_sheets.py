"""Contact sheets of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from swifti2v_core.images import to_bytes

LABEL_HEIGHT = 14


def strip(label: str, clip: Tensor, columns: int = 5, cell_width: int = 240) -> Image.Image:
    """Return evenly spaced frames of a clip, the first and the last among them, under a label.

    Parameters
    ----------
    label
        What the clip is.
    clip
        ``[F, H, W, 3]`` in 0..1.
    columns, cell_width
        How many frames are shown, at least 2, and how wide each is in pixels.
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
    """Save strips of one width, one below the other."""
    sheet = Image.new("RGB", (strips[0].width, sum(one.height for one in strips)), "white")
    top = 0
    for one in strips:
        sheet.paste(one, (0, top))
        top += one.height
    sheet.save(path, quality=80)
