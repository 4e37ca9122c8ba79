"""Memory of the device and of the CPU: how much is free, and what running out of it looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from comfy import model_management

# Called through the module, because other packs replace them; a missing one is reported at start.
from comfy.model_management import (  # noqa: F401
    get_free_memory,
    get_torch_device,
    get_total_memory,
    load_models_gpu,
    soft_empty_cache,
)

CPU = torch.device("cpu")

T = TypeVar("T")


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


def loads_when_used(patcher: Any) -> bool:
    """Return whether a model's weights reach the device when they are first used (dynamic VRAM)."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    return bool(is_dynamic and is_dynamic())


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


def device_context(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which a device is the current one, as ComfyUI has it around its own VAE work.

    ComfyUI's weight casts wait on the current device's stream: outside this context, work on a second GPU
    would read weights that have not arrived.
    """
    # ComfyUI 0.16.3 and 0.18.2 lack it: they have no second GPU to choose for a VAE.
    context = getattr(model_management, "cuda_device_context", None)
    return nullcontext() if context is None else context(device)


def on_device(device: torch.device, pieces: Iterator[T]) -> Iterator[T]:
    """Yield pieces, each made inside `device_context`, which is left before the piece is yielded."""
    nothing = object()
    while True:
        with device_context(device):
            piece = next(pieces, nothing)
        if piece is nothing:
            return
        yield cast(T, piece)
        del piece  # frees its memory while the next one is made


def release_memory() -> None:
    """Give cached blocks back to the device."""
    model_management.soft_empty_cache()
