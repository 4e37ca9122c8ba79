"""Memory of the device and of the CPU: how much is free, and what running out of it looks like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy import model_management

# Called through the module, because other packs replace them; a missing one is reported at start.
from comfy.model_management import (  # noqa: F401
    get_free_memory,
    get_torch_device,
    get_total_memory,
    load_models_gpu,
    pin_memory,
    soft_empty_cache,
    unpin_memory,
)
from torch.cuda import synchronize

CPU = torch.device("cpu")


def device_type() -> str:
    """Return the kind of device that ComfyUI computes on, as PyTorch names it."""
    return model_management.get_torch_device().type


def make_room(patcher: Any, needed: float) -> None:
    """Load a model and free ``needed`` bytes beside it, as ComfyUI does before every use."""
    model_management.load_models_gpu([patcher], memory_required=needed)


def total_bytes(device: torch.device) -> float:
    """Return the memory of a device."""
    return model_management.get_total_memory(device)


def free_bytes(device: torch.device) -> float:
    """Return the memory that is free on a device now."""
    return model_management.get_free_memory(device)


def free_bytes_beside(patcher: Any, device: torch.device) -> float:
    """Return the memory that is free on a device, or will be once a loaded model yields it."""
    return patcher.get_free_memory(device)


def sampling_bytes(model: Any, shape: tuple[int, ...]) -> float:
    """Return ComfyUI's estimate of the memory that a forward on a latent takes."""
    return model.model.memory_required(shape)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is exhausted, the device's or the CPU's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # ComfyUI 0.16.3 lacks it; later ones recognize errors that a GPU reports late.
    is_oom = getattr(model_management, "is_oom", None)
    return bool(is_oom and is_oom(error)) or is_out_of_cpu_memory(error)


def is_out_of_cpu_memory(error: BaseException) -> bool:
    """Return whether an error says that the CPU's memory is exhausted."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextmanager
def pinning(device: torch.device) -> Iterator[Callable[[torch.Tensor], None]]:
    """Give a function that pins CPU tensors, as many as ComfyUI allows, until the end of the block."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> None:
        if model_management.pin_memory(tensor):
            pinned.append(tensor)

    try:
        yield pin
    finally:
        if pinned:
            synchronize(device)  # copies may still be in flight
        for tensor in pinned:
            model_management.unpin_memory(tensor)


def release_memory() -> None:
    """Give cached blocks back to the device."""
    model_management.soft_empty_cache()
