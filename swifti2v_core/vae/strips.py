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
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from . import layers
from .layers import Memory
from .memory_plan import DecodePlan, first_stage_halo, patch_size, strip_ranges, tail_halos
from .transfer import Shelf

Finish = Callable[[Tensor], Tensor]
"""Turns decoded pixels, ``[n, h, w, 3]`` of about -1..1, into what leaves the device."""

Pin = Callable[[Tensor], object]
"""Asks for a tensor of host memory to be pinned, see `transfer.Shelf`."""


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


def long_side(x: Tensor) -> int:
    """Return the dimension of ``[B, F, H, W, C]`` that strips are cut from."""
    return 2 if x.shape[2] > x.shape[3] else 3


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
    pin
        For the memories that rest, see `Pin`.
    """

    def __init__(self, autoencoder: Any, plan: DecodePlan, finish: Finish, pin: Pin) -> None:
        self._autoencoder, self._decoder, self._plan = autoencoder, autoencoder.decoder, plan
        self._finish, self._pin = finish, pin
        self._first_stage, *self._tail_stages = layers.stages(self._decoder.upsamples)
        self._halos = tail_halos(self._tail_stages)
        self._patch = patch_size(self._decoder.head[-1].out_channels)
        self._scale = self._patch * 2 ** sum(stage.resample is not None for stage in self._tail_stages)
        self._front_memory: Memory = {}
        self._strip_memories: dict[int, Memory] = {}
        self._shelves: dict[int, Shelf] = {}

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
        x = layers.convolve(self._autoencoder.conv2, latent_frame.movedim(1, -1).contiguous())
        x = layers.causal(self._decoder.conv1, x, self._front_memory)
        x = layers.middle(self._decoder.middle, x, self._front_memory)
        return layers.upsampling(self._first_stage, x, self._front_memory)

    def _tail(self, features: list[Tensor]) -> Tensor:
        side, parts = long_side(features[0]), []
        for number, (begin, end) in enumerate(strip_ranges(features[0].shape[side], self._plan.strips)):
            memory = self._recalled(number, features[0].device)
            strips = [self._finish(self._strip(x, begin, end, side, memory)) for x in features]
            parts.append(torch.cat(strips))
            if self._plan.rests:
                self._shelves[number].put(memory)
        return torch.cat(parts, dim=side - 1)

    def _recalled(self, number: int, device: torch.device) -> Memory:
        """Return the memory of a strip."""
        if not self._plan.rests:
            return self._strip_memories.setdefault(number, {})
        return self._shelves.setdefault(number, Shelf(self._pin)).take(device)

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


def fold(frames: Tensor, patch: int) -> Tensor:
    """Turn pixels into channels, ``[F, H, W, 3]`` to ``[1, F, H / patch, W / patch, 3 patch²]``."""
    folded: Tensor = rearrange(frames, "f (h q) (w r) c -> 1 f h w (c r q)", q=patch, r=patch)
    return folded
