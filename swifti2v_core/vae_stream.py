"""Exact streaming through the Wan video autoencoders, over the host's own modules and weights.

They are causal in time, and only their middle block mixes distant pixels; everything on the pixel side
of it couples neighbors through convolutions alone. So a decode runs its *front* (up to and with the
first stage, a small part of the work) on whole latent frames and its *tail* on strips with exactly the
halo its convolutions need; an encode runs its first stage, where frames are largest, on strips. Nothing
is blended: the result is that of the undivided run, to the rounding of the convolution kernels.

Strips lie across the longer side, so that they are as thick as possible and their halos weigh least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from . import vae_layers as layers
from .geometry import FRAMES_PER_LATENT
from .transfer import to_host
from .vae_layers import REMEMBERED, Memory, Stage

FAST_STRIPS = (1, 2, 4, 8)
"""Numbers of strips while all memories stay on the device: more would not help, they are most of it."""

RESTING_STRIPS = (8, 16, 32)
"""Numbers of strips while memories rest."""

ENCODE_STRIPS = (1, 2, 4, 8, 16)
"""Numbers of strips of an encode."""

SMALLEST_STRIPS = 64
"""Beyond this the halos outweigh the strips."""

RESTING_CHUNK = 6
"""Latent frames per strip and turn while memories rest: longer means fewer moves of the memories."""

DECODE_COPIES = 3.5
"""Largest activations alive at once in a decode: a block's input, the next convolution's input with its
remembered frames, a smaller output, and room for the convolution itself."""

ENCODE_COPIES = 5.5
"""The same for an encode, whose blocks keep their width and whose stage input waits for the shortcut."""

Finish = Callable[[Tensor], Tensor]
"""Turns decoded pixels, ``[n, h, w, 3]`` of about -1..1, into what leaves the device."""


@dataclass(frozen=True)
class DecodePlan:
    """How a decode is cut.

    Attributes
    ----------
    strips
        Strips of the tail, at least 1.
    chunk
        Latent frames that one strip decodes before the next strip's turn.
    rest
        Device where the memories of waiting strips rest, or None to leave them where they work.
        With None and a chunk of 1 every latent frame is finished before the next begins (fast);
        with the CPU and a longer chunk only one strip's memory is on the GPU (small).
    """

    strips: int
    chunk: int
    rest: torch.device | None = None


def streams(autoencoder: Any) -> bool:
    """Tell whether a module is a Wan autoencoder, 2.1 or 2.2, as the layers here know it."""
    if not all(hasattr(autoencoder, part) for part in ("encoder", "decoder", "conv1", "conv2")):
        return False
    decoder = autoencoder.decoder
    if not all(hasattr(decoder, part) for part in ("conv1", "middle", "upsamples", "head")):
        return False
    if all(hasattr(layer, "avg_shortcut") for layer in decoder.upsamples):
        return bool(decoder.head[-1].out_channels == 12)
    # Wan2.1's layers with other channels make something else: transparency, or twice the size.
    known = all(layers.is_residual(layer) or hasattr(layer, "resample") for layer in decoder.upsamples)
    return known and decoder.head[-1].out_channels == autoencoder.encoder.conv1.in_channels == 3


def patch_size(channels: int) -> int:
    """Return the side of the pixel blocks that lie in the channels at the pixel end: 2 for Wan2.2."""
    return isqrt(channels // 3)


def strip_ranges(length: int, strips: int) -> list[tuple[int, int]]:
    """Cut ``length`` into at most ``strips`` nearly equal pieces, as (begin, end)."""
    count = min(strips, length)
    return list(pairwise(length * i // count for i in range(count + 1)))


def long_side(x: Tensor) -> int:
    """Return the dimension of ``[B, F, H, W, C]`` that strips are cut from."""
    return 2 if x.shape[2] > x.shape[3] else 3


def tail_halos(tail: list[Stage]) -> list[int]:
    """Return how much beyond a strip each tail stage needs at its own input.

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


# --- What it takes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """Bytes that a decode or encode takes beside the weights.

    Attributes
    ----------
    memories
        All causal memories of the part that runs in strips.
    work
        Working tensors of that part, undivided.
    whole
        What is there whole: a latent frame's features in a decode, everything after the first stage
        in an encode.
    """

    memories: float
    work: float
    whole: float


def _convolutions(stage: Stage) -> list[Any]:
    """Return the convolutions of a stage that remember."""
    blocks = [block.residual[place] for block in stage.blocks for place in (2, 6)]
    in_time = getattr(stage.resample, "time_conv", None)
    return blocks if in_time is None else [*blocks, in_time]


def decode_need(decoder: Any, height: int, width: int, element_size: int) -> Need:
    """Return what the tail needs for a latent of ``height`` x ``width``.

    Memories and features follow from the channels; for Wan2.2 at 2560x1408 in bfloat16 the memories
    are 11.4 GiB. Work is `DECODE_COPIES` times the largest activation of four frames.
    """
    _, *tail = layers.stages(decoder.upsamples)
    cells = height * width * 4  # the front doubles once
    feature = tail[0].blocks[0].residual[2].in_channels * 2 * cells
    memories, largest = 0, 0
    for stage in tail:
        convolutions = _convolutions(stage)
        memories += sum(c.in_channels for c in convolutions) * cells * REMEMBERED
        largest = max(largest, cells * max(c.in_channels for c in convolutions))
        if stage.resample is not None:
            cells *= 4
            largest = max(largest, cells * stage.resample.resample[1].in_channels)
    memories += decoder.head[-1].in_channels * cells * REMEMBERED
    work = DECODE_COPIES * largest * FRAMES_PER_LATENT
    return Need(memories * element_size, work * element_size, feature * element_size)


def encode_need(encoder: Any, height: int, width: int, element_size: int) -> Need:
    """Return what encoding frames of ``height`` x ``width`` pixels four at a time needs."""
    first, *others = layers.stages(encoder.downsamples)
    channels = encoder.conv1.in_channels
    cells = height * width // patch_size(channels) ** 2
    memories = (channels + sum(c.in_channels for c in _convolutions(first))) * cells * REMEMBERED
    work = ENCODE_COPIES * first.blocks[-1].out_dim * cells * FRAMES_PER_LATENT
    kept, largest = 0, 0
    for stage in others:
        cells //= 4
        kept += sum(c.in_channels for c in _convolutions(stage)) * cells * REMEMBERED
        largest = max(largest, cells * stage.blocks[-1].out_dim)
    whole = kept + ENCODE_COPIES * largest * FRAMES_PER_LATENT
    return Need(memories * element_size, work * element_size, whole * element_size)


def plan_decode(decoder: Any, height: int, width: int, element_size: int, free: float) -> DecodePlan:
    """Choose the fastest plan that fits.

    Parameters
    ----------
    decoder
        The autoencoder's decoder; its channels decide what is needed.
    height, width
        Size of the latent.
    element_size
        Bytes per value while decoding, 2 for bfloat16.
    free
        Bytes that the decode may take, weights not counted.

    Returns
    -------
    DecodePlan
        All strips frame by frame with as few strips as fit; where the memories alone leave no room, a
        few latent frames strip by strip with resting memories. When nothing fits, the smallest plan.
    """
    need = decode_need(decoder, height, width, element_size)
    length, halo = 2 * max(height, width), tail_halos(layers.stages(decoder.upsamples)[1:])[0]

    def work(strips: int) -> float:
        return need.work * _share(length, strips, halo)

    for strips in FAST_STRIPS:
        if need.memories + need.whole + work(strips) <= free:
            return DecodePlan(strips, 1)
    resting = torch.device("cpu")
    for strips in RESTING_STRIPS:
        share = _share(length, strips, halo)
        if need.memories * share + RESTING_CHUNK * need.whole + work(strips) <= free:
            return DecodePlan(strips, RESTING_CHUNK, resting)
    return DecodePlan(RESTING_STRIPS[-1], 1, resting)


def _share(length: int, strips: int, halo: int) -> float:
    """Return the part of a length that the largest strip takes with its halos."""
    return min(length, -(-length // strips) + 2 * halo) / length


def smaller_plan(plan: DecodePlan) -> DecodePlan:
    """Return a plan that needs less memory; raises MemoryError after the smallest."""
    if plan.strips >= SMALLEST_STRIPS:
        raise MemoryError(
            f"The decode runs out of memory even in {plan.strips} strips; close other programs that use "
            "the card, or make a smaller video."
        )
    if plan.rest is None and plan.strips < FAST_STRIPS[-1]:
        return replace(plan, strips=2 * plan.strips)
    # Memories travel once per chunk; one latent frame at a time they would travel six times as often.
    chunk = RESTING_CHUNK if plan.rest is None else plan.chunk
    return DecodePlan(2 * plan.strips, chunk, torch.device("cpu"))


def plan_encode(encoder: Any, height: int, width: int, element_size: int, free: float) -> int:
    """Choose the number of strips of an encode; parameters as in `plan_decode`, sizes in pixels."""
    need = encode_need(encoder, height, width, element_size)
    length = max(height, width) // patch_size(encoder.conv1.in_channels)
    halo = first_stage_halo(layers.stages(encoder.downsamples)[0])
    for strips in ENCODE_STRIPS:
        work = max(need.whole, need.work * _share(length, strips, halo))
        if need.memories + work <= free:
            return strips
    return ENCODE_STRIPS[-1]


# --- Decode ---------------------------------------------------------------------------------------


class StripDecoder:
    """Decodes one clip, some latent frames at a time.

    Parameters
    ----------
    autoencoder
        ComfyUI's ``comfy.ldm.wan.vae2_2.WanVAE`` or ``comfy.ldm.wan.vae.WanVAE`` with its weights
        loaded.
    plan
        How to cut; the result does not depend on it.
    finish
        Applied to every finished strip, see `Finish`.
    """

    def __init__(self, autoencoder: Any, plan: DecodePlan, finish: Finish) -> None:
        self._autoencoder, self._decoder, self._plan = autoencoder, autoencoder.decoder, plan
        self._finish = finish
        self._first_stage, *self._tail_stages = layers.stages(self._decoder.upsamples)
        self._halos = tail_halos(self._tail_stages)
        self._patch = patch_size(self._decoder.head[-1].out_channels)
        self._scale = self._patch * 2 ** sum(stage.resample is not None for stage in self._tail_stages)
        self._front_memory: Memory = {}
        self._strip_memories: dict[int, Memory] = {}

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode a clip.

        Parameters
        ----------
        latent
            ``[1, C, T, h, w]`` in the autoencoder's space, dtype and device.

        Yields
        ------
        Tensor
            Finished frames in order, ``[n, H, W, 3]`` on the latent's device: for the first latent
            frame one frame, for every other four.
        """
        total = latent.shape[2]
        for start in range(0, total, self._plan.chunk):
            end = min(start + self._plan.chunk, total)
            yield self._tail([self._front(latent[:, :, t : t + 1]) for t in range(start, end)])

    def _front(self, latent_frame: Tensor) -> Tensor:
        x = layers.convolve(self._autoencoder.conv2, latent_frame.movedim(1, -1))
        x = layers.causal(self._decoder.conv1, x, self._front_memory)
        x = layers.middle(self._decoder.middle, x, self._front_memory)
        return layers.upsampling(self._first_stage, x, self._front_memory)

    def _tail(self, features: list[Tensor]) -> Tensor:
        side, parts = long_side(features[0]), []
        for number, (begin, end) in enumerate(strip_ranges(features[0].shape[side], self._plan.strips)):
            memory = _moved(self._strip_memories.pop(number, {}), features[0].device)
            strips = [self._finish(self._strip(x, begin, end, side, memory)) for x in features]
            parts.append(torch.cat(strips))
            self._strip_memories[number] = memory if self._plan.rest is None else _rested(memory)
        return torch.cat(parts, dim=side - 1)

    def _strip(self, x: Tensor, begin: int, end: int, side: int, memory: Memory) -> Tensor:
        """Run the tail on the part of one latent frame's features from ``begin`` to ``end``."""
        length, origin, scale = x.shape[side], 0, 1
        for stage, halo in zip(self._tail_stages, self._halos, strict=True):
            low = max(0, begin * scale - halo)
            high = min(length * scale, end * scale + halo)
            x = x.narrow(side, low - origin, high - low).contiguous()
            x = layers.upsampling(stage, x, memory)
            factor = x.shape[side] // (high - low)
            origin, scale = low * factor, scale * factor
        x = layers.head(self._decoder.head, x, memory)
        x = x.narrow(side, begin * scale - origin, (end - begin) * scale)
        return unfold(x, self._patch)


def _moved(memory: Memory, device: torch.device) -> Memory:
    return {place: part.to(device, non_blocking=True) for place, part in memory.items()}


def _rested(memory: Memory) -> Memory:
    return {place: to_host(part) for place, part in memory.items()}


def unfold(x: Tensor, patch: int) -> Tensor:
    """Turn channels into pixels, ``[1, F, h, w, 3 patch²]`` to ``[F, h patch, w patch, 3]``."""
    frames: Tensor = rearrange(x, "1 f h w (c r q) -> f (h q) (w r) c", q=patch, r=patch)
    return frames


# --- Encode ---------------------------------------------------------------------------------------


class StripEncoder:
    """Encodes one clip, frame 0 and then four frames at a time.

    Parameters
    ----------
    autoencoder
        As for `StripDecoder`.
    strips
        Strips of the first stage, at least 1; the result does not depend on it.
    """

    def __init__(self, autoencoder: Any, strips: int) -> None:
        self._autoencoder, self._encoder, self._strips = autoencoder, autoencoder.encoder, strips
        self._first_stage, *self._other_stages = layers.stages(self._encoder.downsamples)
        self._halo = first_stage_halo(self._first_stage)
        self._patch = patch_size(self._encoder.conv1.in_channels)
        self._strip_memories: dict[int, Memory] = {}
        self._memory: Memory = {}

    def encode(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a clip piece by piece.

        Parameters
        ----------
        pieces
            Frames in order, -1..1, in the autoencoder's dtype and device: first ``[1, H, W, 3]``,
            then ``[4, H, W, 3]`` each.

        Yields
        ------
        Tensor
            One latent frame per piece, ``[1, C, 1, h, w]``.
        """
        for frames in pieces:
            x = self._front(fold(frames, self._patch))
            for stage in self._other_stages:
                x = layers.downsampling(stage, x, self._memory)
            x = layers.middle(self._encoder.middle, x, self._memory)
            x = layers.head(self._encoder.head, x, self._memory)
            x = layers.convolve(self._autoencoder.conv1, x)
            yield x.chunk(2, dim=-1)[0].movedim(-1, 1)

    def _front(self, x: Tensor) -> Tensor:
        side = long_side(x)
        ranges = strip_ranges(x.shape[side] // 2, self._strips)
        parts = [
            self._strip(x, begin, end, side, self._strip_memories.setdefault(number, {}))
            for number, (begin, end) in enumerate(ranges)
        ]
        return torch.cat(parts, dim=side)

    def _strip(self, x: Tensor, begin: int, end: int, side: int, memory: Memory) -> Tensor:
        """Run the first stage for the part of its result from ``begin`` to ``end``."""
        low = max(0, 2 * begin - self._halo)
        high = min(x.shape[side], 2 * end + self._halo)
        x = x.narrow(side, low, high - low).contiguous()
        x = layers.causal(self._encoder.conv1, x, memory)
        x = layers.downsampling(self._first_stage, x, memory)
        return x.narrow(side, begin - low // 2, end - begin)


def first_stage_halo(stage: Stage) -> int:
    """Return how much beyond a strip an encoder's first stage needs at its input.

    One 3x3 convolution before it, two per residual block, and one more row behind for the halving,
    rounded up to an even number, which keeps the halving in step.
    """
    needed = 2 + 2 * len(stage.blocks)
    return needed + needed % 2


def fold(frames: Tensor, patch: int) -> Tensor:
    """Turn pixels into channels, ``[F, H, W, 3]`` to ``[1, F, H / patch, W / patch, 3 patch²]``."""
    folded: Tensor = rearrange(frames, "f (h q) (w r) c -> 1 f h w (c r q)", q=patch, r=patch)
    return folded
