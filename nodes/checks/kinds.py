"""What came through a connection, in the user's words."""

from __future__ import annotations

from typing import Any

import torch

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
