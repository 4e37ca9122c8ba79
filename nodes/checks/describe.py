"""What came through a connection, in the user's words."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy
import torch

from ...swifti2v_core.text import shortened

LONGEST_NUMBER = 30
"""Digits of a whole number that is shown as it is."""

SOCKETS = (
    ("LATENT", lambda value: isinstance(value, dict) and "samples" in value),
    ("IMAGE", lambda value: isinstance(value, torch.Tensor) and value.ndim == 4),
    ("SIGMAS", lambda value: isinstance(value, torch.Tensor) and value.ndim == 1),
    ("MODEL", lambda value: hasattr(value, "get_model_object")),
    ("VAE", lambda value: hasattr(value, "latent_channels")),
    ("GUIDER", lambda value: hasattr(value, "model_patcher")),
    ("NOISE", lambda value: hasattr(value, "generate_noise")),
    ("SAMPLER", lambda value: hasattr(value, "max_denoise")),
    ("CONDITIONING", lambda value: isinstance(value, list)),
)
"""How to recognize what came through a connection, in the user's words."""


def kind_of(value: Any) -> str:
    """Return the kind of socket that ``value`` fits, else the name of its class."""
    return next((name for name, fits in SOCKETS if fits(value)), type(value).__name__)


def is_number(value: Any) -> bool:
    """Tell whether a value is a number of Python or NumPy; ComfyUI hands on what nodes make."""
    return isinstance(value, Integral | float | numpy.floating) and not isinstance(value, bool)


def whole(value: Any) -> bool:
    """Tell whether a value is a whole number of Python or NumPy."""
    return is_number(value) and isinstance(value, Integral)


def whole_numbers(value: Any, count: int) -> bool:
    """Tell whether a value is a list of ``count`` whole numbers."""
    return isinstance(value, list | tuple) and len(value) == count and all(map(whole, value))


def shown(value: Any) -> str:
    """Return a value of any type and size as a part of a sentence."""
    if isinstance(value, str):
        return f'"{shortened(value)}"'
    if value is None or isinstance(value, bool | numpy.bool_):
        return str(value)
    if isinstance(value, Integral):
        digits = int(int(value).bit_length() * math.log10(2))
        return str(value) if digits < LONGEST_NUMBER else f"a number of about {digits} digits"
    if is_number(value):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    kind = kind_of(value)
    return f"an {kind}" if kind[0] in "AEIOaeio" else f"a {kind}"
