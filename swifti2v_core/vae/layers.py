"""The layers of the Wan autoencoders, run a few frames at a time on the host's own modules and weights.

Tensors are ``[B, F, H, W, C]`` and contiguous (channels last): GPU convolutions are fastest in this
layout, PyTorch's fused RMS norm over channels applies (seen in 2.11), and each frame is one block of
memory. A causal convolution takes the last input frames of its previous call from a `FrameCache`. Cached
frames and activated input are written once into one tensor, without padding, cloning or concatenation.

Both families are supported: Wan2.2 (48 channels, ``comfy/ldm/wan/vae2_2.py``) and Wan2.1 (16 channels,
``comfy/ldm/wan/vae.py``). The number of frames that the modules' own ``forward`` expects differs between
ComfyUI versions; the layers are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED_FRAMES = 2
"""Input frames that a causal convolution of three frames caches."""

EPSILON = 1e-24
"""Keeps the norm of an all-zero pixel zero, as the host's lower bound of 1e-12 on the length does."""

FrameCache = dict[Hashable, Tensor]
"""The last input frames of every causal convolution, by its module."""


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one resolution and the change of resolution after them.

    Attributes
    ----------
    blocks
        Residual blocks.
    resample
        Layer that changes the resolution, or None.
    shortcut
        Parameter-free connection from the stage's input to its output (Wan2.2 only), or None.
    """

    blocks: tuple[Any, ...]
    resample: Any | None = None
    shortcut: Any | None = None


def stages(layers: Iterable[Any]) -> list[Stage]:
    """Group the layers of an encoder's ``downsamples`` or a decoder's ``upsamples`` into stages."""
    result: list[Stage] = []
    blocks: list[Any] = []
    for layer in layers:
        if is_residual(layer):
            blocks.append(layer)
        elif hasattr(layer, "resample"):
            result.append(Stage(tuple(blocks), layer))
            blocks = []
        else:  # a stage module, as in Wan2.2
            (inner,) = stages(layer.upsamples if hasattr(layer, "upsamples") else layer.downsamples)
            result.append(Stage(inner.blocks, inner.resample, layer.avg_shortcut))
    return [*result, Stage(tuple(blocks))] if blocks else result


def is_residual(layer: Any) -> bool:
    """Return whether a layer is a residual block."""
    return hasattr(layer, "residual")


def convolve(convolution: Any, x: Tensor) -> Tensor:
    """Run a convolution on frames that need no padding in time.

    The host's causal convolution would pad or concatenate frames first, so its base class is called; that
    class casts and offloads the weights.
    """
    result: Tensor = super(type(convolution), convolution).forward(x.movedim(-1, 1))
    return result.movedim(1, -1).contiguous()  # no copy where the kernel returned channels last


def _allocate_input(convolution: Any, x: Tensor, cache: FrameCache) -> Tensor:
    """Return a tensor that starts with the cached frames and has room for ``x`` after them."""
    batch, count, *size = x.shape
    frames = x.new_empty(batch, CACHED_FRAMES + count, *size)
    if convolution in cache:
        frames[:, :CACHED_FRAMES] = cache[convolution]
    else:
        frames[:, :CACHED_FRAMES] = 0
    return frames


def _update_cache(convolution: Any, frames: Tensor, cache: FrameCache) -> None:
    newest = frames[:, -CACHED_FRAMES:]
    if convolution in cache:
        cache[convolution].copy_(newest)
    else:
        cache[convolution] = newest.clone()


def convolve_causal(convolution: Any, x: Tensor, cache: FrameCache) -> Tensor:
    """Run a causal convolution of three frames."""
    frames = _allocate_input(convolution, x, cache)
    frames[:, CACHED_FRAMES:] = x
    _update_cache(convolution, frames, cache)
    return convolve(convolution, frames)


def _activate(norm: Any, convolution: Any, x: Tensor, cache: FrameCache) -> Tensor:
    """Return the input of a causal convolution after norm and SiLU, starting with the cached frames."""
    frames = _allocate_input(convolution, x, cache)
    gamma = norm.gamma.to(x).flatten()
    for index in range(x.shape[1]):  # frame by frame: only one normalized frame exists at a time
        normed = F.rms_norm(x[:, index], gamma.shape, gamma, EPSILON)
        torch.ops.aten.silu.out(normed, out=frames[:, CACHED_FRAMES + index])
    _update_cache(convolution, frames, cache)
    return frames


def run_residual_block(block: Any, x: Tensor, cache: FrameCache) -> Tensor:
    """Run a residual block."""
    first_norm, _, first, second_norm, _, _, second = block.residual
    y = convolve(first, _activate(first_norm, first, x, cache))
    frames = _activate(second_norm, second, y, cache)
    del y  # frees memory before the second convolution, where the peak is
    y = convolve(second, frames)
    del frames
    return y.add_(x if isinstance(block.shortcut, torch.nn.Identity) else convolve(block.shortcut, x))


def run_head(layers: Any, x: Tensor, cache: FrameCache) -> Tensor:
    """Run the last norm, SiLU and convolution of an encoder or decoder."""
    norm, _, convolution = layers
    return convolve(convolution, _activate(norm, convolution, x, cache))


def run_middle(layers: Iterable[Any], x: Tensor, cache: FrameCache) -> Tensor:
    """Run the middle block; its attention works on each frame alone and is the host's own."""
    for layer in layers:
        if is_residual(layer):
            x = run_residual_block(layer, x, cache)
        else:
            x = layer(x.movedim(-1, 1)).movedim(1, -1).contiguous()
    return x


def upsample(stage: Stage, x: Tensor, cache: FrameCache) -> Tensor:
    """Run a decoder stage.

    The first frame of a clip, known by an empty cache, is not doubled in time.
    """
    y = x
    for block in stage.blocks:
        y = run_residual_block(block, y, cache)
    if stage.resample is not None:
        y = _upsample_frames(stage.resample, y, cache)
    if stage.shortcut is not None:
        _add_repeated(y, x, stage.shortcut)
    return y


def _upsample_frames(resample: Any, x: Tensor, cache: FrameCache) -> Tensor:
    copies = 1
    if hasattr(resample, "time_conv"):
        if resample.time_conv in cache:
            copies = 2
            x = convolve_causal(resample.time_conv, x, cache)
        else:
            cache[resample.time_conv] = x.new_zeros(x.shape[0], CACHED_FRAMES, *x.shape[2:])
    batch, count, height, width, channels = x.shape
    # Both frames made from one are in its channels. Nearest neighbor: every pixel twice in each direction.
    frames = x.view(batch, count, height, width, copies, channels // copies).permute(0, 1, 4, 2, 3, 5)
    frames = frames[:, :, :, :, None, :, None].expand(-1, -1, -1, -1, 2, -1, 2, -1)
    images = frames.reshape(batch * count * copies, 2 * height, 2 * width, channels // copies)
    _, convolution = resample.resample
    result: Tensor = convolution(images.movedim(-1, 1)).movedim(1, -1).contiguous()
    return result.view(batch, count * copies, *result.shape[1:])


def _add_repeated(y: Tensor, x: Tensor, shortcut: Any) -> None:
    """Add a stage's input, repeated to the size of the output, to its output in place.

    The host flattens the output's channel, time, row and column in this order and copies every input
    channel to ``repeats`` consecutive positions.
    """
    batch, count, height, width, _ = x.shape
    sides = (shortcut.factor_t, shortcut.factor_s, shortcut.factor_s)
    left, kept = shortcut.factor // shortcut.repeats, []
    for side in sides:
        kept.append(min(left, side))
        left //= kept[-1]
    parts = x.view(batch, count, height, width, shortcut.out_channels, *kept)
    made = y.shape[1] // count
    parts = parts[..., -made:, :, :]  # the host keeps the last copy of frame 0, which is not doubled
    parts = parts.permute(0, 1, 5, 2, 6, 3, 7, 4)
    rows, columns = (y.shape[2] // height, y.shape[3] // width)
    y.view(batch, count, made, height, rows, width, columns, shortcut.out_channels).add_(parts)


def downsample(stage: Stage, x: Tensor, cache: FrameCache) -> Tensor:
    """Run an encoder stage on frame 0 of a clip, or on the next frames that give whole latent frames."""
    y = x
    for block in stage.blocks:
        y = run_residual_block(block, y, cache)
    if stage.resample is not None:
        y = _downsample_frames(stage.resample, y, cache)
    return y if stage.shortcut is None else y.add_(_average(x, stage.shortcut))


def _downsample_frames(resample: Any, x: Tensor, cache: FrameCache) -> Tensor:
    batch = x.shape[0]
    images = resample.resample(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).contiguous()
    frames: Tensor = images.view(batch, -1, *images.shape[1:])
    if not hasattr(resample, "time_conv"):
        return frames
    previous = cache.get(resample.time_conv)
    cache[resample.time_conv] = frames[:, -1:].clone()
    if previous is None:
        return frames
    return convolve(resample.time_conv, torch.cat((previous, frames), dim=1))


def _average(x: Tensor, shortcut: Any) -> Tensor:
    """Return a stage's input averaged down, in the host's order of channel, time, row and column."""
    time, side = shortcut.factor_t, shortcut.factor_s
    missing = -x.shape[1] % time
    x = F.pad(x, (0, 0, 0, 0, 0, 0, missing, 0)) if missing else x
    batch, count, height, width, channels = x.shape
    cells = x.view(batch, count // time, time, height // side, side, width // side, side, channels)
    cells = cells.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cells.reshape(*cells.shape[:4], shortcut.out_channels, shortcut.group_size).mean(dim=-1)
