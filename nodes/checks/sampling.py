"""Schedules, segment ranges and the sockets of custom sampling."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...swifti2v_core.sigmas import FULL_TIMESTEP, parse_timesteps
from ...swifti2v_core.stage_two.retake import parse_retake
from ...swifti2v_core.text import shortened
from .describe import is_number, kind_of, shown
from .numbers import check_floats

MOST_STEPS = 10000
"""Longest schedule; a longer one is a mistake that would run for days."""


def check_custom_sampling(noise: Any, guider: Any, sampler: Any) -> None:
    """Raise ValueError unless all three are what their sockets promise."""
    for value, attributes, what in (
        (noise, ("generate_noise", "seed"), "NOISE"),
        (guider, ("model_patcher", "original_conds"), "GUIDER"),
        (sampler, ("max_denoise",), "SAMPLER"),  # a GUIDER has "sample", too
    ):
        if not all(hasattr(value, attribute) for attribute in attributes):
            raise ValueError(f"{what.lower()} is a {kind_of(value)}, but must be a {what}.")
    cfg = getattr(guider, "cfg", 1.0)
    if not (is_number(cfg) and math.isfinite(cfg)):
        raise ValueError(f"The cfg of guider is {shown(cfg)}, but must be a number; the usual value is 1.")


def read_sigmas(sigmas: Any) -> torch.Tensor:
    """Return a schedule ``[steps + 1]`` as float32; raise ValueError if no flow model can follow it."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        raise ValueError(f"sigmas is a {kind_of(sigmas)}, but must be SIGMAS.")
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step (denoise 0 makes such a schedule); give it at least one.")
    if len(sigmas) > MOST_STEPS:
        raise ValueError(
            f"sigmas holds {len(sigmas) - 1} steps, but may hold at most {MOST_STEPS - 1}; take fewer."
        )
    check_floats(sigmas, "sigmas")
    if not (sigmas[0] <= 1 and (sigmas[:-1] > sigmas[1:]).all() and sigmas[-1] >= 0):
        first = ", ".join(f"{sigma:g}" for sigma in sigmas.tolist()[:6])
        raise ValueError(
            f"sigmas begins {first}, but a flow model needs values that fall at every step, from at most "
            "1 to at least 0; use a scheduler node with this model."
        )
    return sigmas.to(torch.float32)


def check_noise(noise: Any, latents: torch.Tensor) -> None:
    """Raise ValueError unless a NOISE made noise for every number of some latents."""
    if not isinstance(noise, torch.Tensor) or noise.shape != latents.shape:
        made = tuple(noise.shape) if isinstance(noise, torch.Tensor) else shown(noise)
        raise ValueError(
            f"noise makes {made} for a clip of {tuple(latents.shape)}, but must make as many numbers; "
            "connect RandomNoise."
        )


def check_starts_from_noise(timesteps: str) -> None:
    """Raise ValueError if a list of timesteps starts below pure noise; Stage I starts from nothing."""
    if timesteps.strip() and (first := parse_timesteps(timesteps)[0]) < FULL_TIMESTEP:
        raise ValueError(
            f"timesteps starts at {first:g}, but Stage I starts from pure noise; the nearest valid first "
            "timestep is 1000."
        )


def check_segment_order(start: int, end: int) -> None:
    """Raise ValueError if a range of segments ends before it starts."""
    if 0 < end <= start:
        raise ValueError(
            f"end_segment is {end}, but must be above start_segment, which is {start}, or 0 for all; the "
            f"nearest valid value is {start + 1}."
        )


def check_has_started(start: int, latent: Any) -> None:
    """Raise ValueError if a run starts late, but not from a latent."""
    if start and latent is None:
        raise ValueError(
            f"start_segment is {start}, but no latent holds the segments before it; connect the "
            "latent to continue from, or start at 0."
        )


def read_segment_range(start: int, end: int, count: int) -> tuple[int, int]:
    """Return the segments to make as a range; ``end`` 0 means all."""
    end = end or count
    if not 0 <= start < end <= count:
        raise ValueError(
            f"start_segment is {start} and end_segment {end}, but the clip has {count} segments; "
            f"choose a start from 0 to {count - 1} and an end above it, at most {count}."
        )
    return start, end


def read_retake(text: str, count: int, start: int, end: int, connected: bool) -> list[int]:
    """Return the segments to make again, ascending; empty makes ``start`` to ``end`` as usual."""
    chosen = parse_retake(text, count)
    quoted = shortened(text)
    if chosen and not connected:
        raise ValueError(
            f'retake is "{quoted}", but no latent holds the finished clip; connect the clip to latent, or '
            "leave retake empty."
        )
    if chosen and (start or end):
        raise ValueError(
            f'retake is "{quoted}", but start_segment {start} and end_segment {end} choose segments, too; '
            "set both to 0."
        )
    return chosen
