"""Photos from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_photo(path: Path) -> Tensor:
    """Return a photo ``[1, H, W, 3]`` in 0..1, upright.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with Image.open(path) as picture:
        pixels = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]
