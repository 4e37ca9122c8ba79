"""Models and inputs of the speed benchmarks: real shapes, random values.

Import this after `command_line.boot`: it needs ComfyUI on the path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from benchmarks.speed import wan_models
from benchmarks.speed.measure import Work, captured_log

WINDOW = 5
"""Latent frames of a full window: the anchor, one neighbor, three generated."""

PLANS = {
    "undivided": (1,),
    "4 strips": (4, 2),
    "4 strips, one at a time": (4, 2, 4, 21),
}
"""Forced decode plans: strips, frames at a time, groups of strips, latent frames with kept features."""


@dataclass(frozen=True)
class Sizes:
    """Size and frames of the video, sampling steps, channels and width divisor of the models."""

    width: int = 2560
    height: int = 1408
    frames: int = 81
    steps: int = 4
    channels: int = 96
    divisor: int = 1

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, height and width."""
        return (self.frames - 1) // 4 + 1, self.height // 16, self.width // 16


class Subject:
    """Models and inputs, each made on first use."""

    def __init__(
        self, sizes: Sizes, plans: dict[str, tuple[Any, ...]] | None = None, compiled: bool = False
    ) -> None:
        self.sizes, self.plans = sizes, PLANS if plans is None else plans
        self.pack = wan_models.Pack()
        self._compiled = compiled and self.pack.takes("SwiftI2V_LoadStageII", "compile_blocks")

    @cached_property
    def vae(self) -> Any:
        return wan_models.load_vae("Wan2.2", self.sizes.divisor)

    @cached_property
    def base(self) -> Any:
        """The Stage II MODEL from ComfyUI's loader."""
        return wan_models.load_network("TI2V-5B", self.sizes.channels, self.sizes.divisor)

    @cached_property
    def ours(self) -> Any:
        """The same weights through our loader."""
        return wan_models.through_loader(self.pack, self.base)

    @cached_property
    def our_models(self) -> dict[str, Any]:
        """Our MODELs by case name; a compiled one where the loader supports it."""
        if not self._compiled:
            return {"ours": self.ours}
        compiled = wan_models.through_loader(self.pack, self.base, compile_blocks=True)
        return {"ours": self.ours, "ours, compiled": compiled}

    @cached_property
    def text(self) -> list[Any]:
        return [[_random(1, wan_models.TEXT_TOKENS, wan_models.TEXT_WIDTH), {}]]

    @cached_property
    def latent(self) -> torch.Tensor:
        return _random(1, 48, *self.sizes.latent)

    @cached_property
    def window(self) -> torch.Tensor:
        return _random(1, 48, WINDOW, *self.sizes.latent[1:])

    @cached_property
    def clip(self) -> torch.Tensor:
        return random_frames(self.sizes.frames, self.sizes.height, self.sizes.width)

    @cached_property
    def untiled(self) -> torch.Tensor | None:
        """ComfyUI's undivided decode, or None if it ran out of memory and fell back to tiles."""
        with torch.inference_mode(), captured_log() as notes:
            frames = self.vae.decode(self.latent)[0]
        return None if any("tiled" in note for note in notes) else frames

    def forward_work(self, frames: int) -> Work:
        """Return the work of one Stage II forward over ``frames`` latent frames."""
        size = (frames, *self.sizes.latent[1:])
        return wan_models.forward_work("TI2V-5B", self.sizes.channels, size, self.sizes.divisor)

    def decode_work(self) -> Work:
        return wan_models.decode_work("Wan2.2", self.sizes.latent, self.sizes.divisor)

    def encode_work(self) -> Work:
        size = (self.sizes.frames, self.sizes.height, self.sizes.width)
        return wan_models.encode_work("Wan2.2", size, self.sizes.divisor)


class Forwards:
    """Record the latent frames of every forward of a clone of a MODEL, to count its work."""

    def __init__(self, model: Any) -> None:
        self.model = model.clone()
        self.frames: list[int] = []
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "benchmark", self._forward)

    def _forward(self, executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.frames.append(x.shape[2])
        return executor(x, *args, **kwargs)

    def work(self, one: Callable[[int], Work]) -> Work:
        """Return the work of all forwards since `clear`; ``one`` maps latent frames to that of one."""
        total = Work()
        for frames in set(self.frames):
            total += one(frames) * self.frames.count(frames)
        return total

    def clear(self) -> None:
        self.frames.clear()


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def random_frames(frames: int, height: int, width: int) -> torch.Tensor:
    """Return a clip of noise, ``[F, H, W, 3]`` in 0..1."""
    clip = torch.empty(frames, height, width, 3)
    for frame in clip:  # on the GPU a long clip takes seconds instead of minutes
        frame.copy_(torch.rand(frame.shape, device=wan_models.device()))
    return clip
