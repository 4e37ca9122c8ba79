"""Numbers inside tensors, and the memory that frames take."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ...swifti2v_core.geometry import FRAMES_PER_LATENT, SIZE_MULTIPLE
from ..comfyui import memory

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What images, latents, prompts and schedules may hold."""

IMAGE_PIXEL_BYTES = 12
"""Bytes of a pixel of an IMAGE, three channels of float32."""

GIBIBYTE = 2**30


def check_floats(value: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a tensor holds floating-point numbers, of 16 to 64 bits, that can be read."""
    if value.is_meta or value.layout is not torch.strided:
        form = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
        raise ValueError(
            f"{what} is a {form} tensor, but must be an ordinary one; check the node that makes it."
        )
    if value.dtype not in FLOATS:
        raise ValueError(
            f"{what} holds numbers of the type {str(value.dtype).removeprefix('torch.')}, but must hold "
            "float32, float16, bfloat16 or float64; check the node that makes it."
        )


def check_finite(value: torch.Tensor, what: str, largest: float, rule: str) -> None:
    """Raise ValueError unless a tensor that is not empty holds finite floats of a sensible size.

    Parameters
    ----------
    value
        The tensor.
    what
        Its name.
    largest
        Magnitude up to which numbers are taken, far beyond the usual ones.
    rule
        Usual values and what to do, the end of a sentence.
    """
    check_floats(value, what)
    # An expanded tensor repeats its elements: look at each once.
    held = value.detach()[tuple(slice(0, None if step else 1) for step in value.stride())]
    low, high = (float(bound) for bound in held.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    if max(-low, high) > largest:
        raise ValueError(f"{what} holds values from {low:g} to {high:g}, but {rule}.")


def check_fits_memory(what: str, needed: int, remedy: Callable[[float], str]) -> None:
    """Raise ValueError if something needs more memory than the machine has.

    Parameters
    ----------
    what
        Its name, a plural.
    needed
        Bytes.
    remedy
        Called with the part of it that fits, 0..1; returns the nearest valid value with its name.
    """
    has = memory.total_bytes(memory.CPU)
    if needed > has:
        raise ValueError(
            f"{what} take {needed / GIBIBYTE:.1f} GiB of memory, but this machine has "
            f"{has / GIBIBYTE:.1f} GiB; the nearest valid {remedy(has / needed)}."
        )


def check_frames_fit_memory(clips: int, frames: int, width: int, height: int) -> None:
    """Raise ValueError if the IMAGE of some clips needs more memory than the machine has."""

    def remedy(part: float) -> str:
        room = int(frames * part)
        if room > FRAMES_PER_LATENT:
            return f"number of frames is {room - (room - 1) % FRAMES_PER_LATENT}"
        scale = math.sqrt(part) / SIZE_MULTIPLE
        sides = (max(1, int(side * scale)) * SIZE_MULTIPLE for side in (width, height))
        return f"size is {'x'.join(map(str, sides))}"

    needed = clips * frames * width * height * IMAGE_PIXEL_BYTES
    check_fits_memory(f"Frames of {width}x{height}, {clips * frames} of them,", needed, remedy)
