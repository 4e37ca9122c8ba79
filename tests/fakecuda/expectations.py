"""What every run must keep, as functions: the planted faults prove that they can fail."""

from __future__ import annotations

from typing import Any

import torch
from meter import Event, Meter
from plans import Measured

LARGEST_TENSOR = 2**31 - 1
"""Elements up to which every CUDA kernel works; some index with 32 bits."""

LEAST_SHARE, MOST_SHARE = 0.85, 1.05
"""Peak of a plan as a share of its stated need: neither wasteful nor beyond it."""


def expect_sampling(meter: Meter, latent: torch.Tensor, shape: tuple[int, ...], samplings: int) -> None:
    """Hold a run of native samplings to one copy back each, nothing of ours inside their loops.

    Parameters
    ----------
    latent
        The result.
    shape
        What it must have.
    samplings
        Native samplings of the run: segments, or parts of Stage I.
    """
    expect_stored(latent, shape)
    back = meter.copied("cuda->cpu")
    assert len(back) == samplings and len({copy.place for copy in back}) == 1, listed(back)
    assert meter.copied("cuda->cpu", ours=False) == []
    expect_waits(meter, {})
    expect_undisturbed_loops(meter)


def expect_undisturbed_loops(meter: Meter) -> None:
    """Hold the pack to neither copying nor waiting while a sampler takes its steps."""
    disturbing = meter.ours_in_loop()
    assert disturbing == [], listed(disturbing)


def expect_stored(result: torch.Tensor, shape: tuple[int, ...], device: str = "cpu") -> None:
    """Hold a result to the form in which ComfyUI keeps it between nodes."""
    assert tuple(result.shape) == shape
    assert (result.device.type, result.dtype) == (device, torch.float32)


def expect_waits(meter: Meter, kinds: dict[str, int]) -> None:
    """Hold the pack to a number of waits for the GPU of each kind."""
    found: dict[str, int] = {}
    for wait in meter.waits:
        if wait.ours:
            found[wait.kind] = found.get(wait.kind, 0) + 1
    assert found == kinds, listed(meter.waits)


def expect_planned_memory(measured: Measured) -> None:
    """Hold a plan's peak to its stated need."""
    share = measured.peak / measured.stated
    assert LEAST_SHARE <= share <= MOST_SHARE, f"{measured.plan} took {share:.3f} of its stated need"


def expect_indexable_tensors(measured: Measured) -> None:
    """Hold a plan to tensors that every kernel can index."""
    assert measured.most_elements <= LARGEST_TENSOR, (
        f"{measured.plan} makes a tensor of {measured.most_elements:.3g} elements"
    )


def expect_pinned(measured: Measured, gib: float) -> None:
    """Hold a plan to an amount of pinned CPU memory, to 5 % or 8 MiB."""
    found = measured.pinned / 2**30
    assert abs(found - gib) <= max(0.05 * gib, 1 / 128), f"{measured.plan} pinned {found:.3f} GiB"


def listed(events: list[Any]) -> str:
    """Return the first copies and waits, one a line, for the message of an assertion."""
    return "\n".join(["", *(_line(event) for event in events[:12]), f"{len(events)} in all"])


def _line(event: Event) -> str:
    where = " in the sampling loop" if event.in_loop else ""
    waits = "waiting" if event.blocking else "queued"
    return f"{event.kind} of {event.size} bytes, {waits}, at {event.place}{where}"
