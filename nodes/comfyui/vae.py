"""A VAE: its sizes, its device, and whether clips stream through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ...swifti2v_core.vae.strips import is_wan_autoencoder
from . import memory
from .sampling import to_storage

FREE_SHARE = 0.9
"""Part of the free memory that a plan may count on; the rest covers fragments. Plans count every tensor."""

MOST_ASKED = 0.8
"""Part of a device that ComfyUI is asked to free: more would only push out the VAE's own weights."""


def vae_channels(vae: Any) -> int:
    """Return the latent channels of a VAE."""
    return vae.latent_channels


def cell_size(vae: Any) -> int:
    """Return the pixels per latent cell of a VAE, in both directions."""
    return vae.spacial_compression_decode()


def device_of(vae: Any) -> torch.device:
    """Return where a VAE computes."""
    return getattr(vae, "device", memory.CPU)


def streams(vae: Any) -> bool:
    """Return whether clips stream through a VAE, see `strips.is_wan_autoencoder`; others go whole."""
    network = getattr(vae, "first_stage_model", None)
    return network is not None and is_wan_autoencoder(network)


def pixel_size_of(vae: Any, latent: torch.Tensor) -> tuple[int, int]:
    """Return (width, height) in pixels that a latent decodes to."""
    cell = cell_size(vae)
    return latent.shape[-1] * cell, latent.shape[-2] * cell


def encode_frames(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Encode frames ``[F, H, W, 3]`` to a video latent ``[1, C, T, h, w]``."""
    return to_storage(vae.encode(frames))


def free_bytes_after_loading(vae: Any, needed: float, parts: Iterable[torch.nn.Module]) -> float:
    """Load the VAE, have ComfyUI make room for ``needed`` bytes and return what a plan may take.

    Under dynamic VRAM weights arrive when they are first used, beside the plan: those of ``parts``, the
    modules that will run, are then taken off.
    """
    arriving = _weight_bytes(parts) if memory.loads_when_used(vae.patcher) else 0
    with memory.device_context(vae.device):
        needed = min(needed + arriving, MOST_ASKED * memory.total_bytes(vae.device))
        memory.make_room(vae.patcher, needed)
        return FREE_SHARE * memory.free_bytes_beside(vae.patcher, vae.device) - arriving


def _weight_bytes(parts: Iterable[torch.nn.Module]) -> int:
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())
