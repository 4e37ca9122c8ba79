"""How to cut a decode or encode so that it fits the memory: strips, halos, bytes.

Index arithmetic only; `strips` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

from ..geometry import FRAMES_PER_LATENT
from .layers import REMEMBERED, Stage, stages

DECODE_COPIES = 3.5
"""Largest activations alive at once in a decode: a block's input, the next convolution's input with its
remembered frames, a smaller output, and room for the convolution itself."""

ENCODE_COPIES = 5.5
"""The same for an encode, whose blocks keep their width and whose stage input waits for the shortcut."""


@dataclass(frozen=True)
class DecodePlan:
    """How a decode is cut.

    Attributes
    ----------
    strips
        Strips of the tail, at least 1.
    chunk
        Latent frames that one strip decodes before the next strip's turn.
    rests
        Whether the memories of waiting strips rest in host memory. If not, and with a chunk of 1,
        every latent frame is finished before the next begins (fast); if so, only one strip's memories
        are on the GPU, and a longer chunk means fewer moves (small).
    """

    strips: int
    chunk: int
    rests: bool = False


DECODE_PLANS = (
    DecodePlan(1, 1),
    DecodePlan(2, 1),
    DecodePlan(4, 1),  # more strips would only have more halos to remember
    DecodePlan(8, 6, rests=True),
    DecodePlan(16, 6, rests=True),
    DecodePlan(32, 6, rests=True),
    DecodePlan(64, 1, rests=True),
)
"""Plans to choose from; each takes less memory and more time than the one before."""

ENCODE_STRIPS = (1, 2, 4, 8, 16)
"""Numbers of strips of an encode to choose from."""


def patch_size(channels: int) -> int:
    """Return the side of the pixel blocks that lie in the channels at the pixel end: 2 for Wan2.2."""
    return isqrt(channels // 3)


def strip_ranges(length: int, strips: int) -> list[tuple[int, int]]:
    """Cut ``length`` into at most ``strips`` nearly equal pieces, as (begin, end)."""
    count = min(strips, length)
    return list(pairwise(length * i // count for i in range(count + 1)))


def tail_halos(tail: list[Stage]) -> list[int]:
    """Return how much beyond a strip each tail stage of a decoder needs at its own input.

    Two 3x3 convolutions per residual block, one after each doubling, one in the head. For the Wan2.2
    decoder: 12, 10 and 7.
    """
    halos: list[int] = []
    needed = 1  # the head's convolution
    for stage in reversed(tail):
        if stage.resample is not None:
            needed = (needed + 1 + 1) // 2  # its convolution's, then halved, rounded up
        needed += 2 * len(stage.blocks)
        halos.insert(0, needed)
    return halos


def first_stage_halo(stage: Stage) -> int:
    """Return how much beyond a strip an encoder's first stage needs at its input.

    One 3x3 convolution before it, two per residual block, and one more row behind for the halving,
    rounded up to an even number, which keeps the halving in step.
    """
    needed = 2 + 2 * len(stage.blocks)
    return needed + needed % 2


def _share(length: int, strips: int, halo: int) -> float:
    """Return the part of a length that the largest strip takes with its halos."""
    return min(length, -(-length // strips) + 2 * halo) / length


def _remembered(stage: Stage) -> int:
    """Return the channels that the causal convolutions of a stage remember, all together."""
    channels: int = sum(block.residual[place].in_channels for block in stage.blocks for place in (2, 6))
    in_time = getattr(stage.resample, "time_conv", None)
    return channels + (0 if in_time is None else int(in_time.in_channels))


def decode_need(decoder: Any, height: int, width: int, element_size: int, plan: DecodePlan) -> float:
    """Return the bytes that a decode takes beside the weights.

    Parameters
    ----------
    decoder
        The autoencoder's decoder; its channels decide.
    height, width
        Size of the latent.
    element_size
        Bytes per value while decoding, 2 for bfloat16.
    plan
        How it is cut. Undivided, the memories of Wan2.2 at 2560x1408 in bfloat16 alone take 11.4 GiB.
    """
    _, *tail = stages(decoder.upsamples)
    cells, length = height * width * 4, max(height, width) * 2  # the front doubles once
    feature = tail[0].blocks[0].residual[2].in_channels * 2 * cells
    memory, largest = 0.0, 0.0
    for stage, halo in zip(tail, tail_halos(tail), strict=True):
        share = _share(length, plan.strips, halo)
        memory += _remembered(stage) * cells * share
        largest = max(largest, cells * share * max(block.in_dim for block in stage.blocks))
        if stage.resample is not None:
            cells, length = cells * 4, length * 2
            largest = max(largest, cells * share * stage.resample.resample[1].in_channels)
    head = decoder.head[-1]
    memory += head.in_channels * cells * _share(length, plan.strips, 1)
    pixels = FRAMES_PER_LATENT * cells * head.out_channels  # finished ones, while they are put together
    held = 2 if plan.rests else plan.strips  # one strip comes while another goes
    values = held * REMEMBERED * memory + DECODE_COPIES * FRAMES_PER_LATENT * largest
    return float((values + plan.chunk * (feature + pixels)) * element_size)


def encode_need(encoder: Any, height: int, width: int, element_size: int, strips: int) -> float:
    """Return the bytes that encoding four frames at a time takes beside the weights.

    Parameters as in `decode_need`, with the size in pixels.
    """
    first, *others = stages(encoder.downsamples)
    channels = encoder.conv1.in_channels
    patch = patch_size(channels)
    cells = height * width // patch**2
    share = _share(max(height, width) // patch, strips, first_stage_halo(first))
    memory = (channels + _remembered(first)) * cells * share * strips
    largest = first.blocks[-1].out_dim * cells * share
    for stage in others:
        cells //= 4
        memory += _remembered(stage) * cells
        largest = max(largest, cells * stage.blocks[-1].out_dim)
    return float((REMEMBERED * memory + ENCODE_COPIES * FRAMES_PER_LATENT * largest) * element_size)


def plan_decode(decoder: Any, height: int, width: int, element_size: int, free: float) -> DecodePlan:
    """Return the fastest of `DECODE_PLANS` that fits ``free`` bytes, the smallest when none does.

    The other parameters as in `decode_need`.
    """
    for plan in DECODE_PLANS[:-1]:
        if decode_need(decoder, height, width, element_size, plan) <= free:
            return plan
    return DECODE_PLANS[-1]


def smaller_plan(plan: DecodePlan) -> DecodePlan | None:
    """Return the next plan that needs less memory, None after the smallest."""
    return next((smaller for smaller in DECODE_PLANS if smaller.strips > plan.strips), None)


def plan_encode(encoder: Any, height: int, width: int, element_size: int, free: float) -> int:
    """Return the fewest strips with which an encode fits ``free`` bytes, the most when none does.

    The other parameters as in `encode_need`.
    """
    for strips in ENCODE_STRIPS[:-1]:
        if encode_need(encoder, height, width, element_size, strips) <= free:
            return strips
    return ENCODE_STRIPS[-1]
