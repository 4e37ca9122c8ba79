"""Tensors on their way between the computing device and host memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor
from torch.cuda import Event, current_stream


class Shelf:
    """Host memory where tensors rest between their turns; taken once and written over every time.

    Parameters
    ----------
    pin
        Asks for a tensor of host memory to be pinned, so that copies run at full speed and the program
        does not wait for them; it may refuse.
    """

    def __init__(self, pin: Callable[[Tensor], object]) -> None:
        self._pin = pin
        self._resting: dict[Hashable, Tensor] = {}

    def put(self, tensors: dict[Hashable, Tensor]) -> None:
        """Copy tensors to the shelf."""
        for name, tensor in tensors.items():
            if name not in self._resting:
                self._resting[name] = torch.empty_like(tensor, device="cpu")
                self._pin(self._resting[name])
            place = self._resting[name]
            place.copy_(tensor, non_blocking=place.is_pinned())

    def take(self, device: torch.device) -> dict[Hashable, Tensor]:
        """Return copies of what rests, on a device."""
        return {
            name: tensor.to(device, copy=True, non_blocking=tensor.is_pinned())
            for name, tensor in self._resting.items()
        }


def to_host(tensor: Tensor) -> Tensor:
    """Start copying a tensor to host memory and return the copy.

    From a CUDA device it goes to pinned memory behind the work that is queued, and the program does not
    wait: read the copy only after an event recorded here, or use it in the same queue.
    """
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    try:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:  # systems allow only so much of it; unpinned copies are slower, but work
        return tensor.to("cpu")
    return pinned.copy_(tensor, non_blocking=True)


def one_behind(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Bring pieces to host memory, from a CUDA device each after the work of the next has been queued.

    So the device computes the next piece while the caller uses this one.
    """
    waiting: tuple[Tensor, Event] | None = None
    for piece in pieces:
        copy, event = to_host(piece), _recorded(piece.device)
        del piece  # its device memory is free for the next one
        if event is None:
            yield copy
            continue
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copy, event
    if waiting is not None:
        yield _arrived(*waiting)


def _recorded(device: torch.device) -> Event | None:
    """Mark this point in a device's queue; None where the program waits for every copy anyway."""
    if device.type != "cuda":
        return None
    event: Event = Event()  # type: ignore[no-untyped-call]
    event.record(current_stream(device))
    return event


def _arrived(copy: Tensor, event: Event) -> Tensor:
    event.synchronize()
    return copy
