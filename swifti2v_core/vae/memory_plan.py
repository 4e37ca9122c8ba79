"""How to divide a decode or encode so that it fits in memory: the plans, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

from .counting import Cost, DecodeCounter, EncodeCounter

LARGEST_TENSOR = 2**31 - 1
"""Elements of a tensor up to which every convolution kernel works; some index with 32 bits."""

MOST_KEPT_BYTES = 6 * 2**30
"""RAM that features of the front may take; more would push out what ComfyUI keeps there."""

STRIPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""The numbers of strips that decodes choose from."""

ENCODE_STRIPS = STRIPS[:8]
"""Those of encodes, in which more strips save nothing: the undivided stages are what is left."""


@dataclass(frozen=True)
class DecodePlan:
    """How a decode is divided; the result does not depend on it.

    Attributes
    ----------
    strips
        Strips of the tail, at least 1.
    frames
        Frames that the stages after the last doubling in time run on at a time: 1, 2 or 4.
    groups
        Groups of neighboring strips, at most ``strips``. Each runs over the whole clip before the next one
        starts, so that only its own frame caches exist. With 1, frames are finished in order.
    kept
        Latent frames, the last ones of the clip, whose features the first group keeps in RAM for the
        others; of the rest, every group runs the front again.
    """

    strips: int
    frames: int = 4
    groups: int = 1
    kept: int = 0


@dataclass(frozen=True)
class EncodePlan:
    """How an encode is divided; the result does not depend on it.

    Attributes
    ----------
    strips
        Strips of the first stages, at least 1.
    groups
        Groups of neighboring strips, at most ``strips``. Each runs over the whole clip before the next one
        starts; all but the last keep their results in RAM.
    """

    strips: int
    groups: int = 1


Plan = TypeVar("Plan", DecodePlan, EncodePlan)


def _at_most(cells: int, numbers: Iterable[int]) -> list[int]:
    """Return the numbers of strips into which so many cells can be cut."""
    return [strips for strips in numbers if strips <= max(1, cells)]


def _group_counts(strips: int) -> list[int]:
    """Return the numbers of groups that differ in the strips of the largest group."""
    return sorted({-(-strips // together) for together in range(1, strips + 1)})


def _decode_plans(cells: int, latent_frames: int, most_kept: int) -> Iterable[DecodePlan]:
    most_kept = min(latent_frames, most_kept)
    for strips in _at_most(cells, STRIPS):
        for groups in _group_counts(strips):
            for frames in (4, 2, 1):
                for kept in {0, most_kept} if groups > 1 else {0}:
                    yield DecodePlan(strips, frames, groups, kept)


def decode_cost(
    decoder: Any, height: int, width: int, element_size: int, plan: DecodePlan, latent_frames: int = 1
) -> Cost:
    """Return what a plan takes; the other parameters as in `counting.DecodeCounter`."""
    counter = DecodeCounter(decoder, height, width, element_size, latent_frames)
    return counter.cost(plan.strips, plan.frames, plan.groups, plan.kept)


def encode_cost(
    encoder: Any, height: int, width: int, element_size: int, plan: EncodePlan, latent_frames: int = 1
) -> Cost:
    """Return what a plan takes; the other parameters as in `counting.EncodeCounter`."""
    counter = EncodeCounter(encoder, height, width, element_size, latent_frames)
    return counter.cost(plan.strips, plan.groups)


def _choose(plans: Iterable[Plan], cost: Callable[[Plan], Cost], free: float, free_ram: float) -> Plan:
    """Return the plan with the least work that fits, the one with the least memory if none does."""
    costs = {plan: cost(plan) for plan in plans}
    costs = {plan: cost for plan, cost in costs.items() if cost.largest <= LARGEST_TENSOR} or costs
    in_ram = {plan: cost for plan, cost in costs.items() if cost.ram_bytes <= free_ram}
    least_ram = min(cost.ram_bytes for cost in costs.values())
    in_ram = in_ram or {plan: cost for plan, cost in costs.items() if cost.ram_bytes == least_ram}
    fitting = [plan for plan, cost in in_ram.items() if cost.device_bytes <= free]
    if fitting:
        # One group needs no RAM, and its frames are finished in order.
        return min(
            fitting, key=lambda plan: (plan.groups > 1, in_ram[plan].work, in_ram[plan].device_bytes)
        )
    return min(in_ram, key=lambda plan: (in_ram[plan].device_bytes, in_ram[plan].work))


def plan_decode(
    decoder: Any,
    height: int,
    width: int,
    element_size: int,
    free: float,
    latent_frames: int = 1,
    free_ram: float = float("inf"),
) -> DecodePlan:
    """Return the plan with the least work that fits in memory, the smallest if none does.

    Parameters
    ----------
    decoder, height, width, element_size, latent_frames
        As in `counting.DecodeCounter`.
    free
        Bytes that are free on the device beside the weights.
    free_ram
        Bytes that are free in RAM beside the frames.
    """
    counter = DecodeCounter(decoder, height, width, element_size, latent_frames)
    # One less than fits: a group's part of one latent frame is cut out in RAM, too.
    most_kept = max(0, int(min(free_ram, MOST_KEPT_BYTES) // counter.feature_bytes) - 1)
    plans = _decode_plans(2 * max(height, width), latent_frames, most_kept)
    return _choose(plans, lambda plan: counter.cost(*astuple(plan)), free, free_ram)


def plan_encode(
    encoder: Any,
    height: int,
    width: int,
    element_size: int,
    free: float,
    latent_frames: int = 1,
    free_ram: float = float("inf"),
) -> EncodePlan:
    """Return the plan with the least work that fits in memory, the smallest if none does.

    Parameters as in `plan_decode`, with the encoder and the size in pixels.
    """
    counter = EncodeCounter(encoder, height, width, element_size, latent_frames)
    strips = _at_most(max(height, width) // counter.result_scale, ENCODE_STRIPS)
    plans = (EncodePlan(count, groups) for count in strips for groups in _group_counts(count))
    return _choose(plans, lambda plan: counter.cost(plan.strips, plan.groups), free, free_ram)
