"""Exact streaming through the Wan2.2 video autoencoder, over the host's own module and weights.

The autoencoder is causal in time, and only its middle block mixes distant pixels; everything after
couples neighboring rows through convolutions alone. So the *front* (up to and with the first
upsampling stage, a small part of the work) runs on whole latent frames, and the *tail* runs on
horizontal strips with exactly the halo its convolutions need. Nothing is blended: the result is that of
the undivided decode, to the rounding of the convolution kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .geometry import FRAMES_PER_LATENT

PATCH = 2
"""Side of the pixel blocks that the autoencoder folds into channels at its pixel end."""

CACHED_FRAMES = 2
"""Input frames that a causal convolution remembers."""

STRIP_COUNTS = (1, 2, 4, 8, 16)
"""Numbers of strips to choose from."""

SMALLEST_STRIPS = 64
"""Beyond this the halos outweigh the strips."""

RESTING_CHUNK = 6
"""Latent frames per strip and turn while caches rest: longer means fewer moves of the caches."""

WORKING_COPIES = 5
"""Activations alive at once inside a residual block: about 18 GiB for an undivided 2560x1408 frame."""

Cache = list[Any]
"""Per causal convolution: its newest input frames, the module's own marker, or None."""


@dataclass(frozen=True)
class DecodePlan:
    """How a decode is cut.

    Attributes
    ----------
    strips
        Horizontal strips of the tail, at least 1.
    chunk
        Latent frames that one strip decodes before the next strip's turn.
    rest
        Device where the caches of waiting strips rest, or None to leave them where they work.
        With None and a chunk of 1 every latent frame is finished before the next begins (fast);
        with the CPU and a longer chunk only one strip's caches are on the GPU (small).
    """

    strips: int
    chunk: int
    rest: torch.device | None = None


def streams(autoencoder: Any) -> bool:
    """Tell whether a module is a Wan2.2 autoencoder as `StripDecoder` and `stream_encode` know it."""
    stages = getattr(getattr(autoencoder, "decoder", None), "upsamples", ())
    return hasattr(autoencoder, "conv2") and any(hasattr(stage, "avg_shortcut") for stage in stages)


def new_cache(module: torch.nn.Module) -> Cache:
    """Return an empty cache with room for every causal convolution of a module."""
    return [None] * sum(type(part).__name__ == "CausalConv3d" for part in module.modules())


def tail_halos(stages: Iterable[Any]) -> list[int]:
    """Return how many rows beyond a strip each tail stage needs at its own input.

    Two 3x3 convolutions per residual block, one after each doubling, one in the head. For the Wan2.2
    decoder: 12, 10 and 7 rows.
    """
    halos: list[int] = []
    needed = 1  # the head's convolution
    for stage in reversed(list(stages)):
        if stage.avg_shortcut is not None:
            needed = (needed + 1 + 1) // 2  # its convolution's row, then halved, rounded up
        needed += 2 * sum(hasattr(layer, "residual") for layer in stage.upsamples)
        halos.insert(0, needed)
    return halos


def strip_rows(height: int, strips: int) -> list[tuple[int, int]]:
    """Cut ``height`` rows into at most ``strips`` nearly equal pieces, as (top, bottom)."""
    count = min(strips, height)
    edges = [height * i // count for i in range(count + 1)]
    return list(pairwise(edges))


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
        All strips frame by frame with as few strips as fit; where the caches alone leave no room, a
        few latent frames strip by strip with resting caches. When nothing fits, the smallest plan.
    """
    caches, row, feature = decode_bytes(decoder, height, width, element_size)
    rows, halo = 2 * height, 2 * tail_halos(list(decoder.upsamples)[1:])[0]

    def work(strips: int) -> float:
        return row * min(rows, -(-rows // strips) + halo)

    for strips in STRIP_COUNTS:
        if caches + feature + work(strips) <= free:
            return DecodePlan(strips, 1)
    resting = torch.device("cpu")
    for strips in STRIP_COUNTS[2:]:
        if caches / strips + RESTING_CHUNK * feature + work(strips) <= free:
            return DecodePlan(strips, RESTING_CHUNK, resting)
    return DecodePlan(2 * STRIP_COUNTS[-1], 1, resting)


def smaller_plan(plan: DecodePlan) -> DecodePlan:
    """Return a plan that needs less memory; raises MemoryError after the smallest."""
    if plan.strips >= SMALLEST_STRIPS:
        raise MemoryError(
            f"The decode runs out of memory even in {plan.strips} strips; close other programs that use "
            "the card, or make a smaller video."
        )
    # Resting caches travel once per chunk; one latent frame at a time they would travel six times as often.
    chunk = RESTING_CHUNK if plan.rest is None else plan.chunk
    return DecodePlan(max(8, 2 * plan.strips), chunk, torch.device("cpu"))


def decode_bytes(decoder: Any, height: int, width: int, element_size: int) -> tuple[int, int, int]:
    """Return what the tail needs: all caches, work per row of features, features of a latent frame.

    Caches and features follow from the channels; for Wan2.2 at 2560x1408 in bfloat16 the caches are
    11.4 GiB. Work is `WORKING_COPIES` times the largest activation of four frames.
    """
    stages = list(decoder.upsamples)
    scale = 2  # of the first tail stage against the latent, the front doubles once
    caches, largest, channels = 0, 0, 0
    for stage in stages[1:]:
        convolutions = [
            m for m in stage.modules() if type(m).__name__ == "CausalConv3d" and m.kernel_size[0] > 1
        ]
        cells = height * scale * width * scale
        caches += sum(c.in_channels for c in convolutions) * cells * CACHED_FRAMES * element_size
        channels = channels or convolutions[0].in_channels
        widest = max(c.in_channels for c in convolutions)
        scale *= 1 if stage.avg_shortcut is None else 2
        last = [c.out_channels for c in convolutions if c.kernel_size[1] > 1][-1]
        largest = max(largest, widest * cells, last * height * scale * width * scale)
    head = decoder.head[-1]
    caches += head.in_channels * height * scale * width * scale * CACHED_FRAMES * element_size
    row = WORKING_COPIES * largest * FRAMES_PER_LATENT * element_size // (2 * height)
    feature = channels * 2 * (2 * height) * (2 * width) * element_size
    return caches, row, feature


class StripDecoder:
    """Decodes one clip, some latent frames at a time.

    Parameters
    ----------
    autoencoder
        ComfyUI's ``comfy.ldm.wan.vae2_2.WanVAE`` with its weights loaded.
    plan
        How to cut; the result does not depend on it.
    """

    def __init__(self, autoencoder: Any, plan: DecodePlan) -> None:
        self._autoencoder, self._decoder, self._plan = autoencoder, autoencoder.decoder, plan
        self._front_cache = new_cache(self._decoder)
        self._stages = list(self._decoder.upsamples)[1:]
        self._halos = tail_halos(self._stages)
        self._scale = PATCH * 2 ** sum(stage.avg_shortcut is not None for stage in self._stages)
        self._strips: list[tuple[int, int]] = []
        self._caches: list[Cache] = []

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode a clip.

        Parameters
        ----------
        latent
            ``[1, 48, T, h, w]`` in the autoencoder's space, dtype and device.

        Yields
        ------
        Tensor
            Finished frames in order, ``[1, 3, n, 16 h, 16 w]`` float32 on the CPU, about -1..1: for the
            first latent frame one frame, for every other four.
        """
        total = latent.shape[2]
        for start in range(0, total, self._plan.chunk):
            chunk = range(start, min(start + self._plan.chunk, total))
            features = [self._front(latent[:, :, t : t + 1], first=t == 0) for t in chunk]
            yield self._tail(features, first=start == 0)

    def _front(self, latent_frame: Tensor, first: bool) -> Tensor:
        x = self._autoencoder.conv2(latent_frame)
        x = _remembering(self._decoder.conv1, x, self._front_cache, 0)
        place = [1]
        for layer in self._decoder.middle:
            x = layer(x, self._front_cache, place) if hasattr(layer, "residual") else layer(x)
        result: Tensor = self._decoder.upsamples[0](x, self._front_cache, place, first)
        return result

    def _tail(self, features: list[Tensor], first: bool) -> Tensor:
        if not self._strips:
            self._strips = strip_rows(features[0].shape[-2], self._plan.strips)
            self._caches = [new_cache(self._decoder) for _ in self._strips]
        device, scale = features[0].device, self._scale
        height, width = (size * scale for size in features[0].shape[-2:])
        count = FRAMES_PER_LATENT * len(features) - (FRAMES_PER_LATENT - 1) * first
        frames = torch.empty(1, 3, count, height, width, dtype=torch.float32)
        for number, (top, bottom) in enumerate(self._strips):
            cache = self._caches[number] = _moved(self._caches[number], device)
            parts = [
                self._strip(feature, top, bottom, cache, first and position == 0)
                for position, feature in enumerate(features)
            ]
            frames[..., top * scale : bottom * scale, :] = unfold(torch.cat(parts, dim=2))
            if self._plan.rest is not None:
                self._caches[number] = _moved(cache, self._plan.rest)
        return frames

    def _strip(self, x: Tensor, top: int, bottom: int, cache: Cache, first: bool) -> Tensor:
        """Run the tail on rows ``top`` to ``bottom`` of one latent frame's features."""
        height, origin, scale, place = x.shape[-2], 0, 1, [0]
        for stage, halo in zip(self._stages, self._halos, strict=True):
            begin = max(0, top * scale - halo)
            end = min(height * scale, bottom * scale + halo)
            x = stage(x[..., begin - origin : end - origin, :].contiguous(), cache, place, first)
            factor = x.shape[-2] // (end - begin)
            origin, scale = begin * factor, scale * factor
        for layer in self._decoder.head:
            if type(layer).__name__ == "CausalConv3d":
                x = _remembering(layer, x, cache, place[0])
            else:
                x = layer(x)
        return x[..., top * scale - origin : bottom * scale - origin, :]


def _remembering(convolution: Any, x: Tensor, cache: Cache, place: int) -> Tensor:
    """Run a causal convolution with its cache, as the autoencoder does around its residual blocks."""
    newest = x[:, :, -CACHED_FRAMES:].clone()
    previous = cache[place]
    if newest.shape[2] < CACHED_FRAMES and previous is not None:
        newest = torch.cat((previous[:, :, -1:], newest), dim=2)
    result: Tensor = convolution(x, previous)
    cache[place] = newest
    return result


def _moved(cache: Cache, device: torch.device) -> Cache:
    return [part.to(device) if isinstance(part, Tensor) else part for part in cache]


def stream_encode(autoencoder: Any, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Encode a clip piece by piece.

    Parameters
    ----------
    autoencoder
        ComfyUI's ``comfy.ldm.wan.vae2_2.WanVAE`` with its weights loaded.
    chunks
        Frames in order, -1..1, in the autoencoder's dtype and device: first ``[1, 3, 1, H, W]``, then
        ``[1, 3, 4, H, W]`` each.

    Yields
    ------
    Tensor
        One latent frame per chunk, ``[1, 48, 1, H / 16, W / 16]``.
    """
    cache = new_cache(autoencoder.encoder)
    for frames in chunks:
        encoded = autoencoder.encoder(fold(frames), cache, [0])
        yield autoencoder.conv1(encoded).chunk(2, dim=1)[0]


def fold(frames: Tensor) -> Tensor:
    """Fold 2x2 pixels into channels, ``[B, 3, F, H, W]`` to ``[B, 12, F, H / 2, W / 2]``."""
    folded: Tensor = rearrange(frames, "b c f (h q) (w r) -> b (c r q) f h w", q=PATCH, r=PATCH)
    return folded


def unfold(folded: Tensor) -> Tensor:
    """Undo `fold`."""
    frames: Tensor = rearrange(folded, "b (c r q) f h w -> b c f (h q) (w r)", q=PATCH, r=PATCH)
    return frames
