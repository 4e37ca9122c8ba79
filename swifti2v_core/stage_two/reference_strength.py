"""Strength of the reference: a mix of two predictions, with and without it.

Concat weights read ``z_ref`` from separate input channels, which can be left out: the reference is
*dropped* where these channels are zero. Every strength interpolates or extrapolates the two predictions,
as in classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reference = Literal["followed", "dropped"]
"""Whether a forward pass of the network receives the reference."""

LATENT_CHANNELS = 48
"""Channels of the noisy latent; the channels after them hold the reference."""

MAX_STRENGTH = 2.0
"""Largest strength, which extrapolates the step from dropped to followed by the same amount again."""


def check_reference_strength(strength: float) -> None:
    """Raise ValueError unless ``strength`` lies in 0..2."""
    if not 0 <= strength <= MAX_STRENGTH:  # also false for NaN
        nearest = MAX_STRENGTH if strength > MAX_STRENGTH else 0 if strength < 0 else 1
        raise ValueError(
            f"reference_strength is {strength:g}, but must be from 0 to {MAX_STRENGTH:g}; "
            f"the nearest valid value is {nearest:g}."
        )


def predictions_per_step(strength: float) -> int:
    """Return the number of forward passes per step: 1 for strengths 0 and 1, otherwise 2."""
    return 1 if strength in (0, 1) else 2


def drop_reference(inputs: Tensor, clean: int) -> Tensor:
    """Return a network input whose noisy frames have no reference.

    Clean frames keep theirs, which is their own latent and carries no motion.

    Parameters
    ----------
    inputs
        ``[B, 96, W, h, w]``: 48 channels of the latent, then 48 of the reference, in the network's
        own space, where 0 is the mean of all latents. Not changed.
    clean
        Number of leading clean frames.
    """
    dropped = inputs.clone()
    dropped[:, LATENT_CHANNELS:, clean:] = 0
    return dropped


def inputs_to_run(inputs: Tensor, clean: int, strength: float) -> dict[Reference, Tensor]:
    """Return the network inputs that a strength needs, see `predictions_per_step`.

    Parameters
    ----------
    inputs
        ``[B, 96, W, h, w]``, see `drop_reference`; with strength 1 any number of channels.
    clean
        Number of leading clean frames.
    strength
        0..2.
    """
    if strength == 1:
        return {"followed": inputs}
    dropped = drop_reference(inputs, clean)
    return {"dropped": dropped} if strength == 0 else {"dropped": dropped, "followed": inputs}


def mix_predictions(predictions: dict[Reference, Tensor], strength: float) -> Tensor:
    """Return ``dropped + strength * (followed - dropped)``, or the only prediction there is.

    Predictions are the velocity of a flow model; the denoised frames, ``x - sigma * velocity``, are
    then mixed in the same proportion.

    Parameters
    ----------
    predictions
        The network's outputs for the inputs from `inputs_to_run`, all of one shape.
    strength
        0..2, as in `inputs_to_run`.
    """
    if len(predictions) == 1:
        return next(iter(predictions.values()))
    # lerp rounds once, also in half precision.
    return torch.lerp(predictions["dropped"], predictions["followed"], strength)
