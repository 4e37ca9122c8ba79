"""Photos from disk, and the search for source files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_files(places: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """Return the files with given suffixes among files and below folders, sorted by path.

    Raises
    ------
    ValueError
        If a place does not exist, or no file has such a suffix.
    """
    found: set[Path] = set()
    for place in map(Path, places):
        if not place.exists():
            raise ValueError(f"The source {place} does not exist; name existing files or folders.")
        inside = place.rglob("*") if place.is_dir() else [place]
        found |= {path for path in inside if path.suffix.lower() in suffixes and path.is_file()}
    if not found:
        raise ValueError(
            f"The sources {', '.join(places) or '(none)'} hold no usable file; name files or folders "
            f"with {', '.join(suffixes)}."
        )
    return sorted(found)


def read_photo(path: Path) -> Tensor:
    """Return a photo ``[1, H, W, 3]`` in 0..1, upright.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with Image.open(path) as picture:
        pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]
