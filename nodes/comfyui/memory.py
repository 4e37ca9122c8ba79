"""Memory of the device and of the host: how much there is, and what is done when it runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.cuda import synchronize

from . import internals
from .internals import internal, works


def make_room(patcher: Any, needed: float) -> None:
    """Load a model and free ``needed`` bytes beside it, as ComfyUI does before every use."""
    internal("comfy.model_management.load_models_gpu")([patcher], memory_required=needed)


def total_memory(device: torch.device) -> float:
    """Return the bytes a device has."""
    return internal("comfy.model_management.get_total_memory")(device)


def free_memory(patcher: Any, device: torch.device) -> float:
    """Return the bytes that are free on a device, or will be when a loaded model asks for them."""
    return patcher.get_free_memory(device)


def free_of(device: torch.device) -> float | None:
    """Return the bytes that are free on a device now, None where ComfyUI cannot tell."""
    if not works(internals.HOST_MEMORY):
        return None
    return internal("comfy.model_management.get_free_memory")(device)


def sampling_need(model: Any, shape: tuple[int, ...]) -> float | None:
    """Return ComfyUI's estimate of what a forward on a latent takes, None where it has none."""
    return model.model.memory_required(shape) if works(internals.ESTIMATES, model) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory is exhausted, the device's or the host's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if works(internals.LATE_ERRORS) and internal("comfy.model_management.is_oom")(error):
        return True
    return is_of_host(error)


def is_of_host(error: BaseException) -> bool:
    """Tell whether an error says that the host's memory is exhausted."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def pinning(device: torch.device) -> Iterator[Callable[[torch.Tensor], None]]:
    """Give a function that pins tensors of host memory, as many as ComfyUI allows, until the end."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> None:
        if works(internals.PINNING) and internal("comfy.model_management.pin_memory")(tensor):
            pinned.append(tensor)

    try:
        yield pin
    finally:
        if pinned:
            synchronize(device)  # copies may still be under way
        for tensor in pinned:
            internal("comfy.model_management.unpin_memory")(tensor)


def release_memory() -> None:
    """Give cached blocks back to the device."""
    if works(internals.RELEASING):
        internal("comfy.model_management.soft_empty_cache")()
