"""How to divide a decode or encode so that it fits in memory: strips, halos, bytes.

Index arithmetic only; `strips` does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any

from ..geometry import FRAMES_PER_LATENT
from .layers import CACHED_FRAMES, Stage, stages

DECODE_COPIES = 3.5
"""Peak of a decode in largest activations: a block's input, the next convolution's input with its cached
frames, a smaller output, and the convolution's workspace."""

ENCODE_COPIES = 5.5
"""The same for an encode, whose blocks keep their width and whose shortcut keeps the input alive."""


@dataclass(frozen=True)
class DecodePlan:
    """How a decode is divided.

    Attributes
    ----------
    strips
        Strips of the tail, at least 1.
    latent_frames
        Latent frames that a strip decodes before the next strip does, at least 1.
    offload
        Whether the frame caches of waiting strips are offloaded to CPU memory. Without, all caches stay
        on the GPU (fast); with, only one strip's cache does, and more latent frames at a time mean fewer
        transfers (small).
    """

    strips: int
    latent_frames: int
    offload: bool = False


DECODE_PLANS = (
    DecodePlan(1, 1),
    DecodePlan(2, 1),
    DecodePlan(4, 1),  # beyond 4, the halos in the caches would outweigh the gain
    DecodePlan(8, 6, offload=True),
    DecodePlan(16, 6, offload=True),
    DecodePlan(32, 6, offload=True),
    DecodePlan(64, 1, offload=True),
)
"""The plans, each with less memory and more time than the previous one."""

ENCODE_STRIPS = (1, 2, 4, 8, 16)
"""The numbers of strips that an encode chooses from."""


def patch_size(channels: int) -> int:
    """Return the patch size for ``channels`` at the pixel end: 2 for Wan2.2, 1 for Wan2.1."""
    return isqrt(channels // 3)


def strip_ranges(length: int, strips: int) -> list[tuple[int, int]]:
    """Cut ``length`` into at most ``strips`` nearly equal pieces, as (begin, end)."""
    count = min(strips, length)
    return list(pairwise(length * i // count for i in range(count + 1)))


def tail_halos(tail: list[Stage]) -> list[int]:
    """Return the halo of each tail stage of a decoder, in cells of the stage's own input.

    The receptive field of two 3x3 convolutions per residual block, one after each doubling and one in the
    head. For the Wan2.2 decoder: 12, 10 and 7.
    """
    halos: list[int] = []
    halo = 1  # the head's convolution
    for stage in reversed(tail):
        if stage.resample is not None:
            halo = (halo + 1 + 1) // 2  # plus its convolution, then halved, rounded up
        halo += 2 * len(stage.blocks)
        halos.insert(0, halo)
    return halos


def first_stage_halo(stage: Stage) -> int:
    """Return the halo of an encoder's first stage, in cells of its input.

    One 3x3 convolution before it, two per residual block, and one more row for the strided convolution,
    rounded up to an even number to keep the stride aligned.
    """
    halo = 2 + 2 * len(stage.blocks)
    return halo + halo % 2


def _share(length: int, strips: int, halo: int) -> float:
    """Return the fraction of a length that the largest strip covers with its halos."""
    return min(length, -(-length // strips) + 2 * halo) / length


def _cached_channels(stage: Stage) -> int:
    """Return the sum of the channels that the causal convolutions of a stage cache."""
    channels: int = sum(block.residual[place].in_channels for block in stage.blocks for place in (2, 6))
    in_time = getattr(stage.resample, "time_conv", None)
    return channels + (0 if in_time is None else int(in_time.in_channels))


def decode_memory_bytes(
    decoder: Any, height: int, width: int, element_size: int, plan: DecodePlan
) -> float:
    """Return the bytes that a decode needs in addition to the weights.

    Parameters
    ----------
    decoder
        The autoencoder's decoder, of which the channel counts are read.
    height, width
        Size of the latent.
    element_size
        Bytes per value while decoding, 2 for bfloat16.
    plan
        How the decode is divided. Undivided, the caches of Wan2.2 at 2560x1408 in bfloat16 alone take
        11.4 GiB.
    """
    _, *tail = stages(decoder.upsamples)
    cells, length = height * width * 4, max(height, width) * 2  # the front doubles once
    feature = tail[0].blocks[0].residual[2].in_channels * 2 * cells
    cached, largest = 0.0, 0.0
    for stage, halo in zip(tail, tail_halos(tail), strict=True):
        share = _share(length, plan.strips, halo)
        cached += _cached_channels(stage) * cells * share
        largest = max(largest, cells * share * max(block.in_dim for block in stage.blocks))
        if stage.resample is not None:
            cells, length = cells * 4, length * 2
            largest = max(largest, cells * share * stage.resample.resample[1].in_channels)
    head = decoder.head[-1]
    cached += head.in_channels * cells * _share(length, plan.strips, 1)
    pixels = FRAMES_PER_LATENT * cells * head.out_channels  # finished ones, while they are concatenated
    caches = 2 if plan.offload else plan.strips  # one is loaded while another is stored
    values = caches * CACHED_FRAMES * cached + DECODE_COPIES * FRAMES_PER_LATENT * largest
    return float((values + plan.latent_frames * (feature + pixels)) * element_size)


def encode_memory_bytes(encoder: Any, height: int, width: int, element_size: int, strips: int) -> float:
    """Return the bytes that encoding four frames at a time needs in addition to the weights.

    Parameters as in `decode_memory_bytes`, with the size in pixels.
    """
    first, *others = stages(encoder.downsamples)
    channels = encoder.conv1.in_channels
    patch = patch_size(channels)
    cells = height * width // patch**2
    share = _share(max(height, width) // patch, strips, first_stage_halo(first))
    cached = (channels + _cached_channels(first)) * cells * share * strips
    largest = first.blocks[-1].out_dim * cells * share
    for stage in others:
        cells //= 4
        cached += _cached_channels(stage) * cells
        largest = max(largest, cells * stage.blocks[-1].out_dim)
    return float((CACHED_FRAMES * cached + ENCODE_COPIES * FRAMES_PER_LATENT * largest) * element_size)


def plan_decode(decoder: Any, height: int, width: int, element_size: int, free: float) -> DecodePlan:
    """Return the fastest of `DECODE_PLANS` that fits in ``free`` bytes, the smallest if none does.

    The other parameters as in `decode_memory_bytes`.
    """
    for plan in DECODE_PLANS[:-1]:
        if decode_memory_bytes(decoder, height, width, element_size, plan) <= free:
            return plan
    return DECODE_PLANS[-1]


def smaller_plan(plan: DecodePlan) -> DecodePlan | None:
    """Return the next plan with less memory, None after the smallest."""
    return next((smaller for smaller in DECODE_PLANS if smaller.strips > plan.strips), None)


def plan_encode(encoder: Any, height: int, width: int, element_size: int, free: float) -> int:
    """Return the fewest strips with which an encode fits in ``free`` bytes, the most if none does.

    The other parameters as in `encode_memory_bytes`.
    """
    for strips in ENCODE_STRIPS[:-1]:
        if encode_memory_bytes(encoder, height, width, element_size, strips) <= free:
            return strips
    return ENCODE_STRIPS[-1]
