"""Noise schedules of rectified-flow models: shift, few-step lists, denoise, expert split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .text import shortened

FULL_TIMESTEP = 1000.0
"""Timestep of pure noise."""

FEW_STEP_TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)
"""The 4-step list of the lightx2v distilled models (LightX2V configs; used with shift 5)."""

RECIPE_SHIFT = 5.0
"""Shift of Wan2.2 and the few-step recipes."""

MAX_STEPS = 1000
"""Longest list of timesteps: one step per timestep of the model."""

EXPERT_BOUNDARY = 0.9
"""Sigma at which Wan2.2-I2V-A14B switches from the high-noise to the low-noise expert."""


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Return ``shift * s / (1 + (shift - 1) * s)``, the resolution shift of flow matching.

    Shift 1 changes nothing; larger values spend more steps at high noise. 0 and 1 are fixed points.
    Source: SD3 (arXiv 2403.03206), section 5.3.2, as used by Wan.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def even_timesteps(steps: int) -> tuple[float, ...]:
    """Return ``steps`` evenly spaced timesteps from 1000 down; 4 give `FEW_STEP_TIMESTEPS`."""
    if steps < 1:
        raise ValueError(
            f"steps is {steps}, but at least one step is needed; the nearest valid value is 1."
        )
    return tuple(FULL_TIMESTEP * (steps - step) / steps for step in range(steps))


def parse_timesteps(text: str) -> tuple[float, ...]:
    """Parse a list of timesteps such as ``"1000, 750, 500, 250"``.

    Raises
    ------
    ValueError
        If an entry is not a number or outside (0, 1000], or if the list does not fall or is longer than
        `MAX_STEPS`.
    """
    quoted = shortened(text)
    try:
        timesteps = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise ValueError(
            f'timesteps is "{quoted}", but must be numbers separated by commas, '
            'for example "1000, 750, 500, 250".'
        ) from None
    falling = all(a > b for a, b in pairwise(timesteps))
    # Stated positively, so that NaN fails.
    if not (timesteps and falling and timesteps[0] <= FULL_TIMESTEP and timesteps[-1] > 0):
        raise ValueError(
            f'timesteps is "{quoted}", but must fall from at most 1000 to more than 0, '
            'for example "1000, 750, 500, 250".'
        )
    if len(timesteps) > MAX_STEPS:
        raise ValueError(
            f'timesteps is "{quoted}", {len(timesteps)} numbers, but a schedule has at most {MAX_STEPS} '
            "steps; leave some out."
        )
    return timesteps


def check_timesteps(text: str) -> None:
    """Raise ValueError unless a text is empty or a list that `parse_timesteps` reads."""
    if text.strip():
        parse_timesteps(text)


def flow_sigmas(timesteps: Sequence[float], shift: float, denoise: float = 1.0) -> Tensor:
    """Return the sigmas of a list of timesteps.

    ``denoise`` scales the timesteps, before the shift: with evenly spaced timesteps these are the
    last ``steps`` steps of a schedule of ``steps / denoise`` steps, as ComfyUI defines denoise.

    Parameters
    ----------
    timesteps
        Falling, within (0, 1000].
    shift
        Resolution shift, > 0; 5 for Wan2.2 TI2V-5B and the 4-step recipes.
    denoise
        In (0, 1]; 1 starts from pure noise.

    Returns
    -------
    Tensor
        ``[len(timesteps) + 1]`` float32, falling, ending in 0.

    Raises
    ------
    ValueError
        If ``denoise`` or ``shift`` is out of range.
    """
    check_denoise(denoise)
    if shift <= 0:
        raise ValueError(f"shift is {shift}, but must be above 0; 5 suits the Wan2.2 models.")
    sigma = torch.tensor([*timesteps, 0.0], dtype=torch.float64) / FULL_TIMESTEP * denoise
    return shift_sigma(sigma, shift).to(torch.float32)


def check_denoise(denoise: float) -> None:
    """Raise ValueError unless ``denoise`` lies in (0, 1]."""
    if not 0 < denoise <= 1:
        nearest = 1.0 if denoise > 1 else 0.05
        raise ValueError(
            f"denoise is {denoise:g}, but must be above 0 and at most 1; "
            f"the nearest useful value is {nearest:g}."
        )


def split_sigmas(sigmas: Tensor, boundary: float = EXPERT_BOUNDARY) -> tuple[Tensor, Tensor]:
    """Split a schedule between two experts at a noise level.

    Steps that start at a sigma of at least ``boundary`` go to the first part. The sigma at the switch ends
    the first part and starts the second; a part without steps has one entry.
    """
    high_steps = int((sigmas[:-1] >= boundary).sum())
    return sigmas[: high_steps + 1], sigmas[high_steps:]
