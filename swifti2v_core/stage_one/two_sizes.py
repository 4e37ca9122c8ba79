"""Noise reshifting: the first steps of Stage I run at a larger size, the rest at the size of the clip.

The first steps decide the layout, and a model decides it best at the size it was trained for. The first
steps therefore run large; the clean frames are then estimated, scaled down and noised again for the rest.

Source: SURF, section on noise reshifting. Its printed formula omits the ``1 - s`` on the clean frames,
which every rectified flow has; here the noised frames are ``(1 - s) * D(x0) + s * e``.
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
class SizeSteps:
    """The steps of a schedule that run at one size.

    Attributes
    ----------
    width, height
        Size in pixels.
    sigmas
        ``[steps + 1]``, falling to 0, so that these steps end with clean frames.
    """

    width: int
    height: int
    sigmas: Tensor


@dataclass(frozen=True)
class ExpertSteps:
    """The steps that one expert runs at one size, in one call of the sampler.

    Attributes
    ----------
    size_index
        Index of the size among the `SizeSteps` of the clip.
    expert
        0 for the high-noise expert (or the only model), 1 for the low-noise expert.
    sigmas
        ``[steps + 1]``, falling, at least one step.
    adds_noise
        Whether noise is added first; otherwise sampling continues with the noise that remains.
    """

    size_index: int
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
        Enlargement of each side for the first steps; must enlarge both.
    multiple
        Both sides are rounded to their nearest multiple of this.

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


def check_reshift_steps(steps: int, count: int) -> None:
    """Raise ValueError unless ``steps`` of ``count`` leave at least one for each size."""
    if not 0 < steps < count:
        nearest = min(max(steps, 1), count - 1)
        raise ValueError(
            f"reshift_steps is {steps}, but the schedule has {count} steps and at least the last one must "
            f"run at the size of the clip; the nearest valid value is {nearest}."
        )


def reshift_size_steps(
    sigmas: Tensor, steps: int, large: tuple[int, int], small: tuple[int, int]
) -> tuple[SizeSteps, SizeSteps]:
    """Divide a schedule between two sizes.

    The last large step goes straight to 0. Any sampler then ends at the clean frames that the model
    predicts there (``x0 = z - s * u``), at no extra cost. Reading the last prediction from the sampler's
    callback instead would give the same with Euler, but other samplers call it at other points of a step.

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
    check_reshift_steps(steps, len(sigmas) - 1)
    clean = sigmas.new_zeros(1)
    return SizeSteps(*large, torch.cat((sigmas[:steps], clean))), SizeSteps(*small, sigmas[steps:])


def match_snr(large: SizeSteps, small: SizeSteps) -> SizeSteps:
    """Return the small steps with less noise, so that the signal-to-noise ratio over an area is preserved.

    An object covers fewer pixels in the small clip, so the same noise per pixel hides more of it. With the
    linear scale ``r`` (small over large), ``r * s / (1 - (1 - r) * s)`` hides as much as ``s`` did. This is
    the resolution shift of flow matching with shift ``r``, applied to all small steps, so that the sigmas
    keep falling. 0 and 1 are fixed points, and r = 1 changes nothing.

    Source: SD3 (arXiv 2403.03206), section 5.3.2; requested in a review of SURF.
    """
    scale = math.sqrt(small.width * small.height / (large.width * large.height))
    return replace(small, sigmas=shift_sigma(small.sigmas, scale))


def plan_expert_steps(sizes: Sequence[SizeSteps], boundary: float) -> list[ExpertSteps]:
    """Divide the steps of every size between two experts, by the noise level that the model receives.

    Parameters
    ----------
    sizes
        The steps of every size, in the order in which they run.
    boundary
        Sigma below which the second expert takes over; 0 gives all steps to the first.
    """
    expert_steps = []
    for size_index, size in enumerate(sizes):
        adds_noise = True
        for expert, sigmas in enumerate(split_sigmas(size.sigmas, boundary)):
            if len(sigmas) > 1:
                expert_steps.append(ExpertSteps(size_index, expert, sigmas, adds_noise))
                adds_noise = False
    return expert_steps


def large_photo(photo: Tensor, large: SizeSteps, small: SizeSteps, fit: Fit) -> Tensor:
    """Return the photo ``[1, large.height, large.width, 3]`` that the large steps start from.

    It shows exactly the part of the photo that the small size shows. Rounding to multiples changes the
    proportions slightly, so the photo is stretched a little; scaling down reverses that.

    Parameters
    ----------
    photo
        ``[1, H, W, C]`` float, 0..1.
    fit
        Framing, see `images.fit_frames`.
    """
    framed = FRAMINGS[fit](photo[..., :3].float(), small.width / small.height)
    return resize(framed, large.width, large.height)


def shrink(latent: Tensor, height: int, width: int) -> Tensor:
    """Scale a latent ``[B, C, T, h, w]`` down to ``[B, C, T, height, width]``, frame by frame.

    Linear and antialiased. The weights sum to 1, so scaling commutes with normalization per channel.
    """
    batch, _, frames, *_ = latent.shape
    images = latent.movedim(2, 1).flatten(0, 1)
    small = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    return small.reshape(batch, frames, *small.shape[1:]).movedim(1, 2)
