"""NOISE, SAMPLER, GUIDER, SIGMAS, and one native sampling with them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy import model_management

# Called through the module, because other packs replace it; a missing one is reported at start.
from comfy.model_management import intermediate_device  # noqa: F401
from comfy.sample import prepare_noise
from comfy.samplers import SAMPLER_NAMES, CFGGuider, sampler_object
from comfy.utils import reshape_mask

from ...swifti2v_core.seeds import clip_seed
from ...swifti2v_core.sigmas import RECIPE_SHIFT, even_timesteps, flow_sigmas, parse_timesteps
from .forward import with_fastest_attention
from .models import has_chosen_shift, model_shift

logger = logging.getLogger("SwiftI2V")


def sampler_names() -> list[str]:
    """Return the samplers that ComfyUI offers."""
    return list(SAMPLER_NAMES)


def make_sampler(name: str) -> Any:
    """Return a SAMPLER by name."""
    return sampler_object(name)


def schedule(model: Any, steps: int, timesteps: str, denoise: float = 1.0) -> torch.Tensor:
    """Return the sigmas that the widgets steps and timesteps ask for, with the model's shift."""
    chosen = parse_timesteps(timesteps) if timesteps.strip() else even_timesteps(steps)
    shift = model_shift(model)
    if shift != RECIPE_SHIFT:
        # Our loaders have a widget for it; other loaders keep ComfyUI's own value without a word.
        level = logging.INFO if has_chosen_shift(model) else logging.WARNING
        logger.log(
            level,
            "The model's shift is %g; Wan2.2 and the few-step recipes use 5, which ModelSamplingSD3 sets.",
            shift,
        )
    return flow_sigmas(chosen, shift, denoise)


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return a GUIDER with classifier-free guidance; 1 skips the negative prompt."""
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def motion_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return the GUIDER of a Stage I sampling, with the attention kernel that suits the GPU."""
    return cfg_guider(with_fastest_attention(model), positive, negative, cfg)


@dataclass(frozen=True)
class SeededNoise:
    """A NOISE that draws ComfyUI's noise of a seed; further clips of a batch take the next seeds."""

    seed: int

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """Return noise in the shape of ``latent["samples"]``, for each clip as if it were alone."""
        clips = latent["samples"].split(1)
        # A clip picked from a batch keeps its number, and so its noise.
        numbers = latent.get("batch_index") or range(len(clips))
        seeded = zip(clips, (clip_seed(self.seed, number) for number in numbers), strict=True)
        return torch.cat([prepare_noise(*clip_and_seed) for clip_and_seed in seeded])


def sample(
    guider: Any,
    noise: torch.Tensor,
    latent: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    callback: Callable[..., None],
    seed: int,
) -> torch.Tensor:
    """Run one native sampling and move the result to where ComfyUI keeps latents."""
    result = guider.sample(
        noise,
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return to_storage(result)


def mask_of_shape(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a noise mask as ComfyUI fits it to latents ``[B, C, T, h, w]``.

    Returns
    -------
    Tensor
        ``[B, 1, T, h, w]``, or ``[B, C, T, h, w]`` for a mask with channels.
    """
    batch, channels, *size = shape
    wanted = channels if mask.ndim == 5 and mask.shape[1] > 1 else 1
    return reshape_mask(mask, (batch, wanted, *size)).to(model_management.intermediate_device())


def to_storage(latent: torch.Tensor) -> torch.Tensor:
    """Move a latent to the device where ComfyUI keeps results between nodes."""
    return latent.to(device=model_management.intermediate_device(), dtype=torch.float32)
