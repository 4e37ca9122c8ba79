"""What a user is told when memory runs out: what was being made, what it takes, and what would fit.

Nothing here changes a picture. Work that can be done in smaller pieces with the same result is, where it
is done (`autoencoder`); all other work stops with the sentence of its `Work`, and the queue goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from ...swifti2v_core.geometry import FRAMES_PER_LATENT, SIZE_MULTIPLE, nearest_multiple
from ..comfyui import memory

logger = logging.getLogger("SwiftI2V")

Result = TypeVar("Result")

GIB, MIB = 2**30, 2**20

Advice = tuple[str, float | None]
"""What to do, and the bytes that the work takes then, or None if nobody can tell."""

FLOAT_PIXEL = 3 * 4
"""Bytes of a pixel of an IMAGE."""

SMALLER_SIDES = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
"""Parts of a side that are tried for a size that fits."""

HOST = torch.device("cpu")

GIVE_UP = "close other programs that use memory, or make a smaller or shorter video"


class OutOfMemory(torch.OutOfMemoryError):
    """The device's memory is exhausted, and the sentence is complete; ComfyUI then unloads its models."""


@dataclass(frozen=True)
class Work:
    """What a user must know of work for which there may not be enough memory.

    Attributes
    ----------
    what
        What is made, and of which size.
    need
        Bytes that it takes, or None if nobody can tell.
    smaller
        Lists what to do instead, the nearest first.
    """

    what: str
    need: float | None
    smaller: Callable[[], Iterable[Advice]] = tuple

    def nearest(self, free: float | None) -> str:
        """Return what to do with ``free`` bytes, None if nobody can tell."""
        # What failed is counted too low: what is hardly less will not fit either.
        hardly_less = None if self.need is None else 0.9 * self.need
        most = min(size for size in (free, hardly_less, math.inf) if size is not None)
        fitting = (advice for advice, need in self.smaller() if need is None or need <= most)
        return next(fitting, GIVE_UP)


def telling(work: Callable[[], Work], device: torch.device, make: Callable[[], Result]) -> Result:
    """Return what ``make`` makes on a device, or say of which ``work`` in a sentence that memory ran out.

    Raises
    ------
    OutOfMemory
        If the device's memory is exhausted.
    RuntimeError
        If the host's is.
    """
    try:
        return make()
    except Exception as error:
        if isinstance(error, OutOfMemory) or not memory.is_out_of_memory(error):
            raise
        of_host = memory.is_of_host(error)
    # Outside that block: the exception keeps the failed attempt's tensors alive.
    memory.release_memory()
    raise shortage(work(), device, of_host)


def shortage(work: Work, device: torch.device, of_host: bool) -> RuntimeError:
    """Return the error for work that does not fit on a device, or into the host's memory."""
    device = HOST if of_host else device
    free = memory.free_of(device)
    what = work.what if work.need is None else f"{work.what}, which takes about {_bytes(work.need)},"
    where = "the computer's memory" if device.type == "cpu" else "the GPU's memory"
    if free is not None:
        where += f" ({_bytes(free)} are free)"
    sentence = f"{what} ran out of {where}; {work.nearest(free)}."
    return RuntimeError(sentence) if of_host else OutOfMemory(sentence)


def warn_if_large(work: Work) -> None:
    """Warn if work takes more of the host's memory than is free; what cannot fit is refused by `checks`."""
    free = memory.free_of(HOST)
    if work.need is not None and free is not None and work.need > free:
        logger.warning(
            "%s takes %s and %s are free: the computer may run out of memory.",
            work.what,
            _bytes(work.need),
            _bytes(free),
        )


def image_work(what: str, clips: int, width: int, height: int, frames: int) -> Work:
    """Return the work of making an IMAGE of so many clips, with fewer frames as the way out."""

    def need(count: int) -> float:
        return float(clips * count * width * height * FLOAT_PIXEL)

    of = "" if clips == 1 else f"{clips} times "
    return Work(
        f"The {what} of {of}{frames} frames at {width}x{height}",
        need(frames),
        lambda: fewer_frames("number of frames", frames, need),
    )


def fewer_frames(
    name: str, frames: int, need: Callable[[int], float | None], least: int = 5
) -> Iterator[Advice]:
    """Yield lower numbers of frames, 4n+1, and what ``need`` tells of them."""
    for fewer in range(frames - FRAMES_PER_LATENT, least - 1, -FRAMES_PER_LATENT):
        yield f"the nearest {name} that fits is {fewer}", need(fewer)


def smaller_sizes(
    width: int, height: int, need: Callable[[int, int], float | None], multiple: int = SIZE_MULTIPLE
) -> Iterator[Advice]:
    """Yield smaller sizes of about the same shape, and what ``need`` tells of them."""
    for part in SMALLER_SIDES:
        size = nearest_multiple(int(width * part), multiple), nearest_multiple(int(height * part), multiple)
        if size != (width, height):
            yield f"the nearest size that fits is {size[0]}x{size[1]}", need(*size)


def _bytes(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
