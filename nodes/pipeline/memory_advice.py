"""What a user reads when memory runs out: what was made, what it takes, and what would fit.

Nothing here changes a picture. Work that can be cut into smaller pieces with the same result is cut where
it is done (`encode`, `decode`); other work stops with one sentence, and the queue continues.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...swifti2v_core.geometry import FRAMES_PER_LATENT, SIZE_MULTIPLE, nearest_multiple
from ..comfyui import memory

logger = logging.getLogger("SwiftI2V")

GIB, MIB = 2**30, 2**20

Advice = tuple[str, float]
"""A setting to change, and the bytes that the work takes then."""

IMAGE_PIXEL_BYTES = 3 * 4
"""Bytes of a pixel of an IMAGE."""

SMALLER_SIDES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Fractions of a side that are tried for a size that fits."""

GIVE_UP = "close other programs that use memory, or make a smaller or shorter video"


class OutOfMemory(torch.OutOfMemoryError):
    """The device's memory is exhausted, with a complete sentence; ComfyUI then unloads its models."""


@dataclass(frozen=True)
class MemoryNeed:
    """Work for which there may not be enough memory.

    Attributes
    ----------
    what
        What is made, and at which size.
    needed
        Its bytes, or None if they are unknown.
    smaller
        Lists settings that take less, the nearest first.
    """

    what: str
    needed: float | None
    smaller: Callable[[], Iterable[Advice]] = tuple

    def nearest(self, free: float) -> str:
        """Return the first setting that fits into ``free`` bytes."""
        # The work failed, so the estimate is low: what takes hardly less would fail, too.
        most = free if self.needed is None else min(free, 0.9 * self.needed)
        return next((advice for advice, needed in self.smaller() if needed <= most), GIVE_UP)


@contextmanager
def explain_out_of_memory(need: MemoryNeed, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error of the block into one sentence that describes ``need``.

    Raises
    ------
    OutOfMemory
        If the device's memory is exhausted.
    RuntimeError
        If the CPU's is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not memory.is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the failed attempt's tensors
        memory.release_memory()
        raise shortage(need, device, memory.is_out_of_cpu_memory(error)) from None


def shortage(need: MemoryNeed, device: torch.device, of_cpu: bool) -> RuntimeError:
    """Return the error for work that fits neither on a device nor, if ``of_cpu``, into RAM."""
    device = memory.CPU if of_cpu else device
    free = memory.free_bytes(device)
    what = need.what if need.needed is None else f"{need.what}, which takes about {_bytes(need.needed)},"
    where = "the computer's memory" if device.type == "cpu" else "the GPU's memory"
    sentence = f"{what} ran out of {where} ({_bytes(free)} are free); {need.nearest(free)}."
    return RuntimeError(sentence) if of_cpu else OutOfMemory(sentence)


def warn_if_large(need: MemoryNeed) -> None:
    """Warn if work takes more RAM than is free; `checks` refuse what exceeds the machine's RAM."""
    free = memory.free_bytes(memory.CPU)
    if need.needed is not None and need.needed > free:
        logger.warning(
            "%s takes %s and %s are free: the computer may run out of memory.",
            need.what,
            _bytes(need.needed),
            _bytes(free),
        )


def image_need(what: str, clips: int, width: int, height: int, frames: int) -> MemoryNeed:
    """Return the need of an IMAGE of some clips; fewer frames take less."""

    def needed(count: int) -> float:
        return float(clips * count * width * height * IMAGE_PIXEL_BYTES)

    of = "" if clips == 1 else f"{clips} times "
    return MemoryNeed(
        f"The {what} of {of}{frames} frames at {width}x{height}",
        needed(frames),
        lambda: fewer_frames("number of frames", frames, needed),
    )


def fewer_frames(
    name: str, frames: int, needed: Callable[[int], float], least: int = 5
) -> Iterator[Advice]:
    """Yield lower numbers of frames, 4n+1, with the bytes that they take."""
    for fewer in range(frames - FRAMES_PER_LATENT, least - 1, -FRAMES_PER_LATENT):
        yield f"the nearest {name} that fits is {fewer}", needed(fewer)


def smaller_sizes(
    width: int, height: int, needed: Callable[[int, int], float], multiple: int = SIZE_MULTIPLE
) -> Iterator[Advice]:
    """Yield smaller sizes of about the same shape, with the bytes that they take."""
    for part in SMALLER_SIDES:
        size = nearest_multiple(int(width * part), multiple), nearest_multiple(int(height * part), multiple)
        if size != (width, height):
            yield f"the nearest size that fits is {size[0]}x{size[1]}", needed(*size)


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
