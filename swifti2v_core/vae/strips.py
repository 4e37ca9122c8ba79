"""Exact streaming through the Wan video autoencoders, on the host's own modules and weights.

The autoencoders are causal in time, and only their middle block mixes distant pixels; on the pixel side
of it, the receptive field is that of a few convolutions. A decode therefore runs its *front* (through the
first stage, a small part of the work) on whole latent frames and its *tail* on strips with exactly the
halo that the receptive field needs; an encode runs its first stage, where frames are largest, on strips.
Nothing is blended: the result equals that of the undivided run up to the rounding of the convolution
kernels.

Strips are cut across the longer side, which makes them thick and their halos cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from . import layers
from .layers import FrameCache
from .memory_plan import DecodePlan, first_stage_halo, patch_size, strip_ranges, tail_halos
from .transfer import PinnedCache

Finish = Callable[[Tensor], Tensor]
"""Converts decoded pixels, ``[n, h, w, 3]`` of about -1..1, to the format that leaves the device."""

Pin = Callable[[Tensor], object]
"""Pins a CPU tensor, or refuses; see `transfer.PinnedCache`."""


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


class StripDecoder:
    """Decodes one clip, a few latent frames at a time.

    Parameters
    ----------
    autoencoder
        ComfyUI's ``comfy.ldm.wan.vae2_2.WanVAE`` or ``comfy.ldm.wan.vae.WanVAE`` with its weights
        loaded.
    plan
        How to divide the decode; the result does not depend on it.
    finish
        Applied to every finished strip, see `Finish`.
    pin
        Pins offloaded caches, see `Pin`.
    """

    def __init__(self, autoencoder: Any, plan: DecodePlan, finish: Finish, pin: Pin) -> None:
        self._autoencoder, self._decoder, self._plan = autoencoder, autoencoder.decoder, plan
        self._finish, self._pin = finish, pin
        self._first_stage, *self._tail_stages = layers.stages(self._decoder.upsamples)
        self._halos = tail_halos(self._tail_stages)
        self._patch = patch_size(self._decoder.head[-1].out_channels)
        self._scale = self._patch * 2 ** sum(stage.resample is not None for stage in self._tail_stages)
        self._front_cache: FrameCache = {}
        self._strip_caches: dict[int, FrameCache] = {}
        self._offloaded: dict[int, PinnedCache] = {}

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Decode a clip.

        Parameters
        ----------
        latent
            ``[1, C, T, h, w]`` in the autoencoder's space, dtype and device.

        Yields
        ------
        Tensor
            Finished frames in order, ``[n, H, W, 3]`` on the latent's device: one frame for latent
            frame 0, four for every other.
        """
        total = latent.shape[2]
        for start in range(0, total, self._plan.latent_frames):
            end = min(start + self._plan.latent_frames, total)
            yield self._tail([self._front(latent[:, :, t : t + 1]) for t in range(start, end)])

    def _front(self, latent_frame: Tensor) -> Tensor:
        x = layers.convolve(self._autoencoder.conv2, latent_frame.movedim(1, -1).contiguous())
        x = layers.convolve_causal(self._decoder.conv1, x, self._front_cache)
        x = layers.run_middle(self._decoder.middle, x, self._front_cache)
        return layers.upsample(self._first_stage, x, self._front_cache)

    def _tail(self, features: list[Tensor]) -> Tensor:
        side, parts = long_side(features[0]), []
        for number, (begin, end) in enumerate(strip_ranges(features[0].shape[side], self._plan.strips)):
            cache = self._strip_cache(number, features[0].device)
            strips = [self._finish(self._strip(x, begin, end, side, cache)) for x in features]
            parts.append(torch.cat(strips))
            if self._plan.offload:
                self._offloaded[number].store(cache)
        return torch.cat(parts, dim=side - 1)

    def _strip_cache(self, number: int, device: torch.device) -> FrameCache:
        """Return the frame cache of a strip, copied back if it was offloaded."""
        if not self._plan.offload:
            return self._strip_caches.setdefault(number, {})
        return self._offloaded.setdefault(number, PinnedCache(self._pin)).fetch(device)

    def _strip(self, x: Tensor, begin: int, end: int, side: int, cache: FrameCache) -> Tensor:
        """Run the tail on the part of one latent frame's features from ``begin`` to ``end``."""
        length, origin, scale = x.shape[side], 0, 1
        for stage, halo in zip(self._tail_stages, self._halos, strict=True):
            low = max(0, begin * scale - halo)
            high = min(length * scale, end * scale + halo)
            x = x.narrow(side, low - origin, high - low).contiguous()
            x = layers.upsample(stage, x, cache)
            factor = x.shape[side] // (high - low)
            origin, scale = low * factor, scale * factor
        x = layers.run_head(self._decoder.head, x, cache)
        x = x.narrow(side, begin * scale - origin, (end - begin) * scale)
        return unpatchify(x, self._patch)


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
    strips
        Strips of the first stage, at least 1; the result does not depend on it.
    """

    def __init__(self, autoencoder: Any, strips: int) -> None:
        self._autoencoder, self._encoder, self._strips = autoencoder, autoencoder.encoder, strips
        self._first_stage, *self._other_stages = layers.stages(self._encoder.downsamples)
        self._halo = first_stage_halo(self._first_stage)
        self._patch = patch_size(self._encoder.conv1.in_channels)
        self._strip_caches: dict[int, FrameCache] = {}
        self._cache: FrameCache = {}

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
            x = self._front(patchify(frames, self._patch))
            for stage in self._other_stages:
                x = layers.downsample(stage, x, self._cache)
            x = layers.run_middle(self._encoder.middle, x, self._cache)
            x = layers.run_head(self._encoder.head, x, self._cache)
            x = layers.convolve(self._autoencoder.conv1, x)
            yield x.chunk(2, dim=-1)[0].movedim(-1, 1)

    def _front(self, x: Tensor) -> Tensor:
        side = long_side(x)
        ranges = strip_ranges(x.shape[side] // 2, self._strips)
        parts = [
            self._strip(x, begin, end, side, self._strip_caches.setdefault(number, {}))
            for number, (begin, end) in enumerate(ranges)
        ]
        return torch.cat(parts, dim=side)

    def _strip(self, x: Tensor, begin: int, end: int, side: int, cache: FrameCache) -> Tensor:
        """Run the first stage for the part of its result from ``begin`` to ``end``."""
        low = max(0, 2 * begin - self._halo)
        high = min(x.shape[side], 2 * end + self._halo)
        x = x.narrow(side, low, high - low).contiguous()
        x = layers.convolve_causal(self._encoder.conv1, x, cache)
        x = layers.downsample(self._first_stage, x, cache)
        return x.narrow(side, begin - low // 2, end - begin)


def patchify(frames: Tensor, patch: int) -> Tensor:
    """Move pixels to channels, ``[F, H, W, 3]`` to ``[1, F, H / patch, W / patch, 3 patch²]``."""
    patches: Tensor = rearrange(frames, "f (h q) (w r) c -> 1 f h w (c r q)", q=patch, r=patch)
    return patches
