"""Exact streaming through the Wan video autoencoders, on the host's own modules and weights.

The autoencoders are causal in time, and only their middle block mixes distant pixels; on the pixel side
of it, the receptive field is that of a few convolutions. A decode therefore runs its *front* (through the
first stage, a small part of the work) on whole latent frames and its *tail* on strips with exactly the
halo that the receptive field needs; an encode runs its first stages, where frames are largest, on strips.
Strips form groups. Each group runs over the whole clip before the next one starts, so that the frame caches
of one group exist at a time, and no cache ever leaves the device.
Nothing is blended: the result equals that of the undivided run up to the rounding of the convolution
kernels.

Strips are cut across the longer side, which makes them thick and their halos cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from ..geometry import FRAMES_PER_LATENT
from . import layers
from .counting import (
    DIVIDED_ENCODER_STAGES,
    encoder_halos,
    first_time_invariant,
    patch_size,
    strip_ranges,
    tail_halos,
)
from .layers import FrameCache
from .memory_plan import DecodePlan, EncodePlan

Finish = Callable[[Tensor], Tensor]
"""Converts decoded pixels, ``[n, h, w, 3]`` of about -1..1, to the format that leaves the device."""


KERNELS = {(3, 3, 3), (3, 1, 1), (1, 1, 1)}
"""Sizes of the convolutions, (time, height, width), that the caches and halos here are made for."""


def is_wan_autoencoder(autoencoder: Any) -> bool:
    """Return whether a module is a Wan autoencoder, 2.1 or 2.2, that this module can stream."""
    if not all(hasattr(autoencoder, part) for part in ("encoder", "decoder", "conv1", "conv2")):
        return False
    decoder = autoencoder.decoder
    if not all(hasattr(decoder, part) for part in ("conv1", "middle", "upsamples", "head")):
        return False
    kernels = {
        tuple(layer.kernel_size) for layer in autoencoder.modules() if isinstance(layer, torch.nn.Conv3d)
    }
    if not kernels <= KERNELS:  # relatives of Wan's that see more or fewer frames
        return False
    if all(hasattr(layer, "avg_shortcut") for layer in decoder.upsamples):
        return bool(decoder.head[-1].out_channels == 12)
    # Wan2.1's layers with other channel counts decode to something else: transparency, or twice the size.
    known = all(layers.is_residual(layer) or hasattr(layer, "resample") for layer in decoder.upsamples)
    return known and decoder.head[-1].out_channels == autoencoder.encoder.conv1.in_channels == 3


def long_side(x: Tensor) -> int:
    """Return the dimension of ``[B, F, H, W, C]`` that strips are cut from."""
    return 2 if x.shape[2] > x.shape[3] else 3


# --- Decode ---------------------------------------------------------------------------------------


class Band(NamedTuple):
    """Where decoded pixels belong: frames, and rows or columns of these frames.

    Attributes
    ----------
    frames
        Frames of the clip.
    begin, end
        Rows or columns along ``side``.
    side
        Dimension of ``[F, H, W, 3]`` that ``begin`` and ``end`` count in.
    length
        Rows or columns of a whole frame.
    """

    frames: slice
    begin: int
    end: int
    side: int
    length: int

    @property
    def whole(self) -> bool:
        """Whether it holds whole frames."""
        return self.begin == 0 and self.end == self.length

    @property
    def finishes(self) -> bool:
        """Whether its frames are finished with it; the bands before it are."""
        return self.end == self.length

    def decoded(self, count: int) -> int:
        """Return how much of a clip of ``count`` frames is decoded with it, in frames."""
        before, own = self.begin * count, (self.end - self.begin) * int(self.frames.stop)
        return (before + own) // self.length

    def room_for(self, count: int, pixels: Tensor) -> Tensor:
        """Return room for ``count`` whole frames like the band's ``pixels``."""
        size = list(pixels.shape)
        size[0], size[self.side] = count, self.length
        return pixels.new_empty(size)

    def of(self, clip: Tensor) -> Tensor:
        """Return the band of a clip ``[F, H, W, 3]``, as a view."""
        return clip[self.frames].narrow(self.side, self.begin, self.end - self.begin)


class StripDecoder:
    """Decodes one clip, a latent frame at a time.

    Parameters
    ----------
    autoencoder
        ComfyUI's ``comfy.ldm.wan.vae2_2.WanVAE`` or ``comfy.ldm.wan.vae.WanVAE`` with its weights
        loaded.
    plan
        How to divide the decode; the result does not depend on it.
    finish
        Applied to every finished strip, see `Finish`.
    """

    def __init__(self, autoencoder: Any, plan: DecodePlan, finish: Finish) -> None:
        self._autoencoder, self._decoder, self._plan = autoencoder, autoencoder.decoder, plan
        self._finish = finish
        self._first_stage, *self._tail_stages = layers.stages(self._decoder.upsamples)
        self._halos = tail_halos(self._tail_stages)
        self._stages = list(zip(self._tail_stages, self._halos, strict=True))
        self._invariant = first_time_invariant(self._tail_stages)
        self._patch = patch_size(self._decoder.head[-1].out_channels)
        self._scale = self._patch * 2 ** sum(stage.resample is not None for stage in self._tail_stages)

    def bands(self, latent: Tensor) -> Iterator[Band]:
        """Yield the place of everything that `decode` yields, in the same order."""
        side, total = long_side(latent.movedim(1, -1)), latent.shape[2]
        length = 2 * latent.shape[side + 1] * self._scale
        for group in self._groups(latent):
            begin, end = group[0][0] * self._scale, group[-1][1] * self._scale
            for t in range(total):
                frames = slice(max(0, FRAMES_PER_LATENT * (t - 1) + 1), FRAMES_PER_LATENT * t + 1)
                yield Band(frames, begin, end, side - 1, length)

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode a clip.

        Parameters
        ----------
        latent
            ``[1, C, T, h, w]`` in the autoencoder's space, dtype and device.

        Yields
        ------
        Tensor
            Finished pixels on the latent's device, one `Band` each: group by group, of one frame for latent
            frame 0 and of four for every other.
        """
        groups = self._groups(latent)
        kept: dict[int, Tensor] = {}
        for group in groups:
            front_cache: FrameCache = {}
            caches: list[FrameCache] = [{} for _ in group]
            for t in range(latent.shape[2]):
                if t in kept:
                    front_cache.clear()
                    features = self._fetch(kept[t], group, latent.device)
                else:
                    features = _Features.of(self._front(latent[:, :, t : t + 1], front_cache))
                    if t >= latent.shape[2] - self._plan.kept and len(groups) > 1:
                        kept[t] = features.x.to("cpu")
                parts = [
                    self._strip(features, begin, end, cache)
                    for (begin, end), cache in zip(group, caches, strict=True)
                ]
                yield torch.cat(parts, dim=features.side - 1) if len(parts) > 1 else parts.pop()
                del features, parts

    def _groups(self, latent: Tensor) -> list[list[tuple[int, int]]]:
        """Return the strips of every group, in cells of the front's features."""
        strips = strip_ranges(2 * max(latent.shape[-2:]), self._plan.strips)
        return [strips[begin:end] for begin, end in strip_ranges(len(strips), self._plan.groups)]

    def _front(self, latent_frame: Tensor, cache: FrameCache) -> Tensor:
        x = layers.convolve(self._autoencoder.conv2, latent_frame.movedim(1, -1).contiguous())
        x = layers.convolve_causal(self._decoder.conv1, x, cache)
        x = layers.run_middle(self._decoder.middle, x, cache)
        return layers.upsample(self._first_stage, x, cache)

    def _fetch(self, kept: Tensor, group: list[tuple[int, int]], device: torch.device) -> _Features:
        """Copy what a group needs of the features in RAM back to the device."""
        side = long_side(kept)
        low = max(0, group[0][0] - self._halos[0])
        high = min(kept.shape[side], group[-1][1] + self._halos[0])
        return _Features(
            kept.narrow(side, low, high - low).contiguous().to(device), side, low, kept.shape[side]
        )

    def _strip(self, features: _Features, begin: int, end: int, cache: FrameCache) -> Tensor:
        """Run the tail on the part of one latent frame's features from ``begin`` to ``end``; finish it."""
        x, side = features.x, features.side
        extent = _Extent(features.low, features.length, begin, end)
        for stage, halo in self._stages[: self._invariant]:
            x, extent = _cut(x, side, extent, halo)
            x = layers.upsample(stage, x, cache)
            extent = extent.after(stage)
        frames, finished = list(torch.split(x, self._plan.frames, dim=1)), []
        del x  # freed with the last of `frames`
        while frames:
            finished.append(self._finish(self._pixels(frames, side, extent, cache)))
        return torch.cat(finished) if len(finished) > 1 else finished.pop()

    def _pixels(self, frames: list[Tensor], side: int, extent: _Extent, cache: FrameCache) -> Tensor:
        """Remove the first of ``frames`` and take it to pixels."""
        x = frames.pop(0)
        for stage, halo in self._stages[self._invariant :]:
            x, extent = _cut(x, side, extent, halo)
            x = layers.upsample(stage, x, cache)
            extent = extent.after(stage)
        x = layers.run_head(self._decoder.head, x, cache)
        x = x.narrow(side, extent.begin - extent.low, extent.end - extent.begin)
        return unpatchify(x, self._patch)


class _Features(NamedTuple):
    """The front's features of one latent frame: all of them, or those from ``low`` on along ``side``."""

    x: Tensor
    side: int
    low: int
    length: int

    @classmethod
    def of(cls, x: Tensor) -> _Features:
        return cls(x, long_side(x), 0, x.shape[long_side(x)])


class _Extent(NamedTuple):
    """Activations from ``low`` on, of ``length`` cells in all; those from ``begin`` to ``end`` count."""

    low: int
    length: int
    begin: int
    end: int

    def after(self, stage: layers.Stage) -> _Extent:
        """Return the extent after a stage."""
        return self if stage.resample is None else _Extent(*(2 * place for place in self))


def _cut(x: Tensor, side: int, extent: _Extent, halo: int) -> tuple[Tensor, _Extent]:
    """Cut activations to what counts and a halo."""
    _, length, begin, end = extent
    low, high = max(0, begin - halo), min(length, end + halo)
    return x.narrow(side, low - extent.low, high - low).contiguous(), extent._replace(low=low)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """Move channels to pixels, ``[1, F, h, w, 3 patch²]`` to ``[F, h patch, w patch, 3]``."""
    frames: Tensor = rearrange(x, "1 f h w (c r q) -> f (h q) (w r) c", q=patch, r=patch)
    return frames


# --- Encode ---------------------------------------------------------------------------------------


class StripEncoder:
    """Encodes one clip, frame 0 and then four frames at a time.

    Parameters
    ----------
    autoencoder
        As for `StripDecoder`.
    plan
        How to divide the encode; the result does not depend on it.
    """

    def __init__(self, autoencoder: Any, plan: EncodePlan) -> None:
        self._autoencoder, self._encoder, self._plan = autoencoder, autoencoder.encoder, plan
        every = layers.stages(self._encoder.downsamples)
        self._divided, self._whole = every[:DIVIDED_ENCODER_STAGES], every[DIVIDED_ENCODER_STAGES:]
        self._halos = encoder_halos(self._divided)
        self._patch = patch_size(self._encoder.conv1.in_channels)

    def encode(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode a clip piece by piece.

        Parameters
        ----------
        pieces
            Frames in order, -1..1, in the autoencoder's dtype and device: first ``[1, H, W, 3]``,
            then ``[4, H, W, 3]`` each. Iterated once per group of the plan.

        Yields
        ------
        Tensor
            One latent frame per piece, ``[1, C, 1, h, w]``.
        """
        kept: list[list[Tensor]] = []
        for number in range(self._plan.groups - 1):
            caches: dict[int, FrameCache] = {}
            for t, frames in enumerate(pieces):
                if t == len(kept):
                    kept.append([])
                x = patchify(frames, self._patch)
                kept[t].extend(part.to("cpu") for part in self._front(x, number, caches))
        caches, cache = {}, FrameCache()
        for t, frames in enumerate(pieces):
            x = patchify(frames, self._patch)
            side = long_side(x)
            parts = self._front(x, self._plan.groups - 1, caches)
            if kept:
                parts = [*(part.to(x.device) for part in kept[t]), *parts]
            yield self._latent_frame(torch.cat(parts, dim=side), cache)

    def _latent_frame(self, x: Tensor, cache: FrameCache) -> Tensor:
        """Run what follows the divided stages."""
        for stage in self._whole:
            x = layers.downsample(stage, x, cache)
        x = layers.run_middle(self._encoder.middle, x, cache)
        x = layers.run_head(self._encoder.head, x, cache)
        x = layers.convolve(self._autoencoder.conv1, x)
        return x.chunk(2, dim=-1)[0].movedim(-1, 1)

    def _front(self, x: Tensor, group: int, caches: dict[int, FrameCache]) -> list[Tensor]:
        """Run the divided stages on the strips of a group."""
        side = long_side(x)
        strips = strip_ranges(x.shape[side] // 2 ** len(self._divided), self._plan.strips)
        groups = strip_ranges(len(strips), self._plan.groups)
        if group >= len(groups):  # more groups than strips: the last ones are empty
            return []
        return [
            self._strip(x, *strips[number], side, caches.setdefault(number, {}))
            for number in range(*groups[group])
        ]

    def _strip(self, x: Tensor, begin: int, end: int, side: int, cache: FrameCache) -> Tensor:
        """Run the divided stages for the part of their result from ``begin`` to ``end``."""
        length, needed = x.shape[side], [(begin, end)]
        for number in reversed(range(len(self._divided))):  # what each stage reads, the last one first
            low, high = needed[0]
            most, halo = length // 2**number, self._halos[number]
            needed.insert(0, (max(0, 2 * low - halo), min(most, 2 * high + halo)))
        low, high = needed[0]
        x = x.narrow(side, low, high - low).contiguous()
        x = layers.convolve_causal(self._encoder.conv1, x, cache)
        for stage, (start, stop) in zip(self._divided, needed[1:], strict=True):
            x = layers.downsample(stage, x, cache)
            x = x.narrow(side, start - low // 2, stop - start).contiguous()
            low = start
        return x


def patchify(frames: Tensor, patch: int) -> Tensor:
    """Move pixels to channels, ``[F, H, W, 3]`` to ``[1, F, H / patch, W / patch, 3 patch²]``."""
    patches: Tensor = rearrange(frames, "f (h q) (w r) c -> 1 f h w (c r q)", q=patch, r=patch)
    return patches
