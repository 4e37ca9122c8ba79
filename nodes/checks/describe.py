"""Values as parts of a sentence: their kind of socket, numbers, quoted text."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch

from ...swifti2v_core.text import shortened

SOCKETS = (
    ("LATENT", lambda value: isinstance(value, dict) and "samples" in value),
    ("AUDIO", lambda value: isinstance(value, dict) and "waveform" in value),
    ("IMAGE", lambda value: isinstance(value, torch.Tensor) and value.ndim == 4),
    ("SIGMAS", lambda value: isinstance(value, torch.Tensor) and value.ndim == 1),
    ("MODEL", lambda value: hasattr(value, "get_model_object")),
    ("VAE", lambda value: hasattr(value, "latent_channels")),
    ("GUIDER", lambda value: hasattr(value, "model_patcher")),
    ("NOISE", lambda value: hasattr(value, "generate_noise")),
    ("SAMPLER", lambda value: hasattr(value, "max_denoise")),
    ("CONDITIONING", lambda value: isinstance(value, list)),
)
"""How to recognize the type of a socket by its value."""


def kind_of(value: Any) -> str:
    """Return the kind of socket that ``value`` fits, else the name of its class."""
    return next((name for name, fits in SOCKETS if fits(value)), type(value).__name__)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, Python's or NumPy's."""
    return is_number(value) and isinstance(value, Integral)


def are_whole_numbers(value: Any, count: int) -> bool:
    """Return whether a value is a list of ``count`` whole numbers."""
    return isinstance(value, list | tuple) and len(value) == count and all(map(is_whole, value))


def shown(value: Any) -> str:
    """Return a value of any type as a part of a sentence."""
    if isinstance(value, str):
        return f'"{shortened(value)}"'
    if value is None or isinstance(value, bool):
        return str(value)
    if is_number(value):
        return str(value) if isinstance(value, Integral) else f"{value:g}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    kind = kind_of(value)
    return f"an {kind}" if kind[0] in "AEIOaeio" else f"a {kind}"
