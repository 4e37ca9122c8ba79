"""Noise reshifting: the first steps of Stage I at a larger size, the rest at the clip's own.

The first steps decide the layout, and a model decides it best at the size it was trained for. So the
clip is begun large; its clean frames are then estimated, scaled down and noised anew for the rest.

Source: SURF, section on noise reshifting. Its printed formula leaves out the ``1 - s`` on the clean
frames, which no rectified flow has; here the noised frames are ``(1 - s) * D(x0) + s * e``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import nearest_multiple
from ..images import FRAMINGS, Fit, resize
from ..sigmas import shift_sigma, split_sigmas


@dataclass(frozen=True)
class Leg:
    """The steps of a clip that run at one size.

    Attributes
    ----------
    width, height
        Size in pixels.
    sigmas
        ``[steps + 1]``, falling to 0: a leg ends with clean frames.
    """

    width: int
    height: int
    sigmas: Tensor


@dataclass(frozen=True)
class Part:
    """One sampling: the steps of a leg that one expert does.

    Attributes
    ----------
    leg
        Index of the leg.
    expert
        0 for the high-noise expert (or the only model), 1 for the low-noise expert.
    sigmas
        ``[steps + 1]``, falling, at least one step.
    adds_noise
        Whether noise is added first; without, the part goes on from the noise that is left.
    """

    leg: int
    expert: int
    sigmas: Tensor
    adds_noise: bool


def large_size(width: int, height: int, scale: float, multiple: int) -> tuple[int, int]:
    """Return the (width, height) of the first steps.

    Parameters
    ----------
    width, height
        Size of the clip in pixels, multiples of ``multiple``.
    scale
        How much larger the first steps are, per side; must enlarge both.
    multiple
        What both sides must be multiples of; each goes to its nearest one.

    Raises
    ------
    ValueError
        If a side does not grow.
    """
    large = tuple(nearest_multiple(round(side * scale), multiple) for side in (width, height))
    if large[0] <= width or large[1] <= height:
        least = math.ceil(100 * (1 + multiple / (2 * min(width, height)))) / 100
        raise ValueError(
            f"reshift_scale is {scale:g}, which gives {large[0]}x{large[1]} for the first steps, but both "
            f"sides must grow beyond {width}x{height}; the nearest valid value is {least:g}."
        )
    return large[0], large[1]


def reshift_legs(
    sigmas: Tensor, steps: int, large: tuple[int, int], small: tuple[int, int]
) -> tuple[Leg, Leg]:
    """Divide a schedule between two sizes.

    The last large step goes straight to 0. With that, the sampler itself ends at the clean frames
    that the model predicts there (``x0 = z - s * u``), at no extra cost, whatever sampler it is. Going
    to the next sigma and reading the last prediction from the sampler's callback gives the same with
    Euler, but callbacks come at different moments of a step in other samplers.

    Parameters
    ----------
    sigmas
        ``[n + 1]``, falling to 0.
    steps
        Number of large steps, 1 to n - 1.
    large, small
        (width, height) in pixels.

    Raises
    ------
    ValueError
        If ``steps`` leaves no large or no small step.
    """
    count = len(sigmas) - 1
    if not 0 < steps < count:
        nearest = min(max(steps, 1), count - 1)
        raise ValueError(
            f"reshift_steps is {steps}, but the schedule has {count} steps and at least the last one must "
            f"run at the size of the clip; the nearest valid value is {nearest}."
        )
    clean = sigmas.new_zeros(1)
    return Leg(*large, torch.cat((sigmas[:steps], clean))), Leg(*small, sigmas[steps:])


def match_snr(large: Leg, small: Leg) -> Leg:
    """Return the small leg with less noise, to keep what the large leg had made visible.

    A thing covers fewer pixels in the small clip, so the same noise per pixel hides it more. With the
    linear scale ``r`` (small over large), ``r * s / (1 - (1 - r) * s)`` hides it as much as ``s`` did.
    This is the resolution shift of flow matching with shift ``r``; all steps of the leg get it, so
    that they keep falling. 0 and 1 stay where they are, and r = 1 changes nothing.

    Source: SD3 (arXiv 2403.03206), section 5.3.2; asked for by a review of SURF.
    """
    scale = math.sqrt(small.width * small.height / (large.width * large.height))
    return replace(small, sigmas=shift_sigma(small.sigmas, scale))


def plan_parts(legs: Sequence[Leg], boundary: float) -> list[Part]:
    """Divide every leg between two experts, by the noise level that the model is given.

    Parameters
    ----------
    legs
        In the order in which they run.
    boundary
        Sigma below which the second expert takes over; 0 gives all steps to the first one.
    """
    parts = []
    for index, leg in enumerate(legs):
        adds_noise = True
        for expert, sigmas in enumerate(split_sigmas(leg.sigmas, boundary)):
            if len(sigmas) > 1:
                parts.append(Part(index, expert, sigmas, adds_noise))
                adds_noise = False
    return parts


def large_photo(photo: Tensor, large: Leg, small: Leg, fit: Fit) -> Tensor:
    """Return the photo ``[1, large.height, large.width, 3]`` that the large leg starts from.

    It shows exactly what the small leg's photo shows. Sizes in whole multiples have slightly
    different proportions, so it is stretched a little; scaling down takes that back.

    Parameters
    ----------
    photo
        ``[1, H, W, C]`` float, 0..1.
    fit
        Framing, see `resize.fit_frames`.
    """
    framed = FRAMINGS[fit](photo[..., :3].float(), small.width / small.height)
    return resize(framed, large.width, large.height)


def shrink(latent: Tensor, height: int, width: int) -> Tensor:
    """Scale a latent ``[B, C, T, h, w]`` down to ``[B, C, T, height, width]``, frame by frame.

    Linear and antialiased. The weights sum to 1, so it does not matter whether the latent is
    normalized per channel.
    """
    batch, _, frames, *_ = latent.shape
    images = latent.movedim(2, 1).flatten(0, 1)
    small = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    return small.reshape(batch, frames, *small.shape[1:]).movedim(1, 2)
