"""The layers of the Wan autoencoders, run some frames at a time over the host's own modules and weights.

Tensors are ``[B, F, H, W, C]`` and contiguous: channels last, which is what convolutions on a GPU are
fastest with, what lets PyTorch's own fused norm over channels be used (seen in 2.11), and what keeps a
frame in one piece. A causal convolution finds the newest frames of its last turn in a `Memory` and gets
them and its activated input in one tensor, written once: nothing is padded, cloned or put together again.

Both families are known: Wan2.2 (48 channels, ``comfy/ldm/wan/vae2_2.py``) and Wan2.1 (16 channels,
``comfy/ldm/wan/vae.py``). The modules' own ``forward`` differs between versions of ComfyUI in how many
frames it must be given; the layers do not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

REMEMBERED = 2
"""Input frames that a causal convolution of three frames remembers."""

EPSILON = 1e-24
"""Keeps the norm of an all-zero pixel zero, as the host's lower bound of 1e-12 on the length does."""

Memory = dict[Hashable, Tensor]
"""Newest input frames of every causal convolution, by its module."""


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one resolution and the change of resolution after them.

    Attributes
    ----------
    blocks
        Residual blocks.
    resample
        What changes the resolution, or None.
    shortcut
        What carries the stage's input to its output unlearned (Wan2.2 only), or None.
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
        else:  # a stage of its own, as Wan2.2 has them
            (inner,) = stages(layer.upsamples if hasattr(layer, "upsamples") else layer.downsamples)
            result.append(Stage(inner.blocks, inner.resample, layer.avg_shortcut))
    return [*result, Stage(tuple(blocks))] if blocks else result


def is_residual(layer: Any) -> bool:
    """Tell whether a layer is a residual block."""
    return hasattr(layer, "residual")


def convolve(convolution: Any, x: Tensor) -> Tensor:
    """Run a convolution on frames that need no padding in time.

    The host's causal convolution would pad or put frames together first, so its base class is called:
    casting and offloading are there.
    """
    result: Tensor = super(type(convolution), convolution).forward(x.movedim(-1, 1))
    return result.movedim(1, -1).contiguous()  # contiguous already where channels last is understood


def _with_room(convolution: Any, x: Tensor, memory: Memory) -> Tensor:
    """Return a tensor with the remembered frames in front and room for ``x`` behind."""
    batch, count, *size = x.shape
    frames = x.new_empty(batch, REMEMBERED + count, *size)
    if convolution in memory:
        frames[:, :REMEMBERED] = memory[convolution]
    else:
        frames[:, :REMEMBERED] = 0
    return frames


def _remember(convolution: Any, frames: Tensor, memory: Memory) -> None:
    newest = frames[:, -REMEMBERED:]
    if convolution in memory:
        memory[convolution].copy_(newest)
    else:
        memory[convolution] = newest.clone()


def causal(convolution: Any, x: Tensor, memory: Memory) -> Tensor:
    """Run a causal convolution of three frames."""
    frames = _with_room(convolution, x, memory)
    frames[:, REMEMBERED:] = x
    _remember(convolution, frames, memory)
    return convolve(convolution, frames)


def _activated(norm: Any, convolution: Any, x: Tensor, memory: Memory) -> Tensor:
    """Return what a causal convolution gets behind a norm and SiLU, remembered frames in front."""
    frames = _with_room(convolution, x, memory)
    gamma = norm.gamma.to(x).flatten()
    for index in range(x.shape[1]):  # frame by frame, so that only one normed frame exists
        normed = F.rms_norm(x[:, index], gamma.shape, gamma, EPSILON)
        torch.ops.aten.silu.out(normed, out=frames[:, REMEMBERED + index])
    _remember(convolution, frames, memory)
    return frames


def residual(block: Any, x: Tensor, memory: Memory) -> Tensor:
    """Run a residual block."""
    first_norm, _, first, second_norm, _, _, second = block.residual
    y = convolve(first, _activated(first_norm, first, x, memory))
    frames = _activated(second_norm, second, y, memory)
    del y  # not needed while the second convolution works, where memory is tightest
    y = convolve(second, frames)
    del frames
    return y.add_(x if isinstance(block.shortcut, torch.nn.Identity) else convolve(block.shortcut, x))


def head(layers: Any, x: Tensor, memory: Memory) -> Tensor:
    """Run the last norm, SiLU and convolution of an encoder or decoder."""
    norm, _, convolution = layers
    return convolve(convolution, _activated(norm, convolution, x, memory))


def middle(layers: Iterable[Any], x: Tensor, memory: Memory) -> Tensor:
    """Run the middle block; its attention looks at one frame at a time and is the host's own."""
    for layer in layers:
        if is_residual(layer):
            x = residual(layer, x, memory)
        else:
            x = layer(x.movedim(-1, 1)).movedim(1, -1).contiguous()
    return x


def upsampling(stage: Stage, x: Tensor, memory: Memory) -> Tensor:
    """Run a decoder stage.

    The first frame of a clip is not doubled in time; a memory that is still empty tells.
    """
    y = x
    for block in stage.blocks:
        y = residual(block, y, memory)
    if stage.resample is not None:
        y = _enlarged(stage.resample, y, memory)
    if stage.shortcut is not None:
        _add_repeated(y, x, stage.shortcut)
    return y


def _enlarged(resample: Any, x: Tensor, memory: Memory) -> Tensor:
    copies = 1
    if hasattr(resample, "time_conv"):
        if resample.time_conv in memory:
            copies = 2
            x = causal(resample.time_conv, x, memory)
        else:
            memory[resample.time_conv] = x.new_zeros(x.shape[0], REMEMBERED, *x.shape[2:])
    batch, count, height, width, channels = x.shape
    # The two frames made of one lie in its channels. Nearest neighbor: every pixel twice each way.
    frames = x.view(batch, count, height, width, copies, channels // copies).permute(0, 1, 4, 2, 3, 5)
    frames = frames[:, :, :, :, None, :, None].expand(-1, -1, -1, -1, 2, -1, 2, -1)
    pictures = frames.reshape(batch * count * copies, 2 * height, 2 * width, channels // copies)
    _, convolution = resample.resample
    result: Tensor = convolution(pictures.movedim(-1, 1)).movedim(1, -1).contiguous()
    return result.view(batch, count * copies, *result.shape[1:])


def _add_repeated(y: Tensor, x: Tensor, shortcut: Any) -> None:
    """Add a stage's input to its output, every value as often as the output is larger.

    The host numbers the output's channel, time, row and column in this order and gives every input
    channel ``repeats`` of these numbers in a row.
    """
    batch, count, height, width, _ = x.shape
    sides = (shortcut.factor_t, shortcut.factor_s, shortcut.factor_s)
    left, kept = shortcut.factor // shortcut.repeats, []
    for side in sides:
        kept.append(min(left, side))
        left //= kept[-1]
    parts = x.view(batch, count, height, width, shortcut.out_channels, *kept)
    made = y.shape[1] // count
    parts = parts[..., -made:, :, :]  # of the first frame, which is not doubled, the host takes the last
    parts = parts.permute(0, 1, 5, 2, 6, 3, 7, 4)
    rows, columns = (y.shape[2] // height, y.shape[3] // width)
    y.view(batch, count, made, height, rows, width, columns, shortcut.out_channels).add_(parts)


def downsampling(stage: Stage, x: Tensor, memory: Memory) -> Tensor:
    """Run an encoder stage on frame 0 of a clip, or on the next frames that give whole latent frames."""
    y = x
    for block in stage.blocks:
        y = residual(block, y, memory)
    if stage.resample is not None:
        y = _reduced(stage.resample, y, memory)
    return y if stage.shortcut is None else y.add_(_averaged(x, stage.shortcut))


def _reduced(resample: Any, x: Tensor, memory: Memory) -> Tensor:
    batch = x.shape[0]
    pictures = resample.resample(x.flatten(0, 1).movedim(-1, 1)).movedim(1, -1).contiguous()
    frames: Tensor = pictures.view(batch, -1, *pictures.shape[1:])
    if not hasattr(resample, "time_conv"):
        return frames
    previous = memory.get(resample.time_conv)
    memory[resample.time_conv] = frames[:, -1:].clone()
    if previous is None:
        return frames
    return convolve(resample.time_conv, torch.cat((previous, frames), dim=1))


def _averaged(x: Tensor, shortcut: Any) -> Tensor:
    """Return a stage's input averaged down, in the host's order of channel, time, row and column."""
    time, side = shortcut.factor_t, shortcut.factor_s
    missing = -x.shape[1] % time
    x = F.pad(x, (0, 0, 0, 0, 0, 0, missing, 0)) if missing else x
    batch, count, height, width, channels = x.shape
    cells = x.view(batch, count // time, time, height // side, side, width // side, side, channels)
    cells = cells.permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cells.reshape(*cells.shape[:4], shortcut.out_channels, shortcut.group_size).mean(dim=-1)
