"""Copies between the computing device and CPU memory, asynchronous where the memory is pinned."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.cuda import Event, current_stream


def to_cpu(tensor: Tensor) -> Tensor:
    """Start copying a tensor to CPU memory and return the copy.

    From a CUDA device the copy goes to pinned memory, queued on the current stream, and the call does not
    wait for it: read the copy only after an event recorded here, or use it on the same stream.
    """
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    try:
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:  # systems limit pinned memory; pageable copies are slower, but work
        return tensor.to("cpu")
    return pinned.copy_(tensor, non_blocking=True)


def delayed_by_one(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Copy pieces to CPU memory; from a CUDA device, yield each after the next has been queued.

    The device then computes the next piece while the caller uses this one.
    """
    pending: tuple[Tensor, Event] | None = None
    for piece in pieces:
        copy, event = to_cpu(piece), _record_event(piece.device)
        del piece  # frees its device memory for the next one
        if event is None:
            yield copy
            continue
        if pending is not None:
            yield _wait_for(*pending)
        pending = copy, event
    if pending is not None:
        yield _wait_for(*pending)


def _record_event(device: torch.device) -> Event | None:
    """Record an event on a device's stream; return None where every copy blocks anyway."""
    if device.type != "cuda":
        return None
    event: Event = Event()  # type: ignore[no-untyped-call]
    event.record(current_stream(device))
    return event


def _wait_for(copy: Tensor, event: Event) -> Tensor:
    event.synchronize()
    return copy
