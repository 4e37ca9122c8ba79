"""Sampling for rollouts, contact sheets and prepared references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from swifti2v_core.sigmas import FULL_TIMESTEP, even_timesteps, flow_sigmas
from swifti2v_core.stage_one.photo_start import photo_first
from swifti2v_core.stage_two.reference_strength import drop_reference
from swifti2v_core.stage_two.segment_loop import run_segments, take_window
from swifti2v_core.stage_two.segments import Segment, true_positions

from .window_transformer import Positions, Timesteps

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Maps noisy latents ``[B, C, W, h, w]`` and their sigma to the velocity, same shape."""


def euler(velocity: Velocity, latents: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate ``latents`` from ``sigmas[0]`` to ``sigmas[-1]`` by Euler's method."""
    for sigma, following in pairwise(sigmas):
        latents = latents + (following - sigma) * velocity(latents, sigma)
    return latents


def frame_timesteps(sigmas: Tensor, clean: Sequence[int], frames: int) -> list[list[float]]:
    """Return timesteps per sample and frame: 0 for the leading ``clean`` frames, then that of sigma."""
    pairs = zip(sigmas.tolist(), clean, strict=True)
    return [[0.0] * count + [sigma * FULL_TIMESTEP] * (frames - count) for sigma, count in pairs]


def window_velocity(
    network: Any,
    window: Tensor,
    references: Tensor,
    sigmas: Tensor,
    positions: Positions,
    clean: Sequence[int],
    text: Tensor,
    dropped: Sequence[bool] = (),
) -> Tensor:
    """Run a Stage II network on windows.

    Parameters
    ----------
    network
        A `window_transformer.WindowTransformer` with 96 input channels, wrapped or not.
    window
        ``[B, 48, W, h, w]``: clean frames, then noisy ones.
    references
        ``[B, 48, W, h, w]``; those of clean frames are ignored.
    sigmas
        ``[B]``.
    positions, clean
        Per sample, see `window_transformer.WindowTransformer.forward`.
    text
        ``[B, L, text_dim]``.
    dropped
        Which samples have no reference, see `reference_strength.drop_reference`; empty: none.
    """
    samples = []
    for number, frames in enumerate(clean):
        part = slice(number, number + 1)
        # A clean frame's reference channels hold its own latent.
        channels = torch.cat((window[part, :, :frames], references[part, :, frames:]), dim=2)
        inputs = torch.cat((window[part], channels), dim=1)
        samples.append(drop_reference(inputs, frames) if dropped and dropped[number] else inputs)
    timesteps = frame_timesteps(sigmas, clean, window.shape[2])
    velocity: Tensor = network(torch.cat(samples), timesteps, text, positions, clean)
    return velocity


@torch.no_grad()
def generate_segments(
    network: Any,
    latents: Tensor,
    references: Tensor,
    text: Tensor,
    noise: Tensor,
    segments: Sequence[Segment],
    *,
    start: int = 0,
    steps: int = 4,
    shift: float = 5.0,
) -> Tensor:
    """Generate segments of one clip with Stage II, each in a few Euler steps from pure noise.

    Parameters
    ----------
    network
        See `window_velocity`.
    latents
        ``[1, 48, T, h, w]``: frame 0 the photo, frames before segment ``start`` finished. Not changed.
    references, noise
        ``[1, 48, T, h, w]`` each.
    text
        ``[1, L, text_dim]``.
    segments
        The segment plan or its first part.
    start
        Index of the first segment to generate.
    steps, shift
        Steps and shift of the sampling schedule.

    Returns
    -------
    Tensor
        ``[1, 48, T, h, w]``; frames after the last segment are those of ``latents``.
    """
    sigmas = flow_sigmas(even_timesteps(steps), shift).to(latents.device)

    def denoise(segment: Segment, window: Tensor) -> Tensor:
        reference, positions = take_window(references, segment), [true_positions(segment)]
        clean = window[:, :, : segment.clean]

        def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
            whole = torch.cat((clean, noisy), dim=2)
            result = window_velocity(
                network, whole, reference, sigma[None], positions, [segment.clean], text
            )
            return result[:, :, segment.clean :]

        noisy = euler(velocity, take_window(noise, segment)[:, :, segment.clean :], sigmas)
        return torch.cat((clean, noisy), dim=2)

    finished = latents.clone()
    for _ in run_segments(finished, segments, denoise, start=start):
        pass
    return finished


def motion_input(noisy: Tensor, photo: Tensor) -> Tensor:
    """Return A14B's input: noisy latents, mask and image, 16 + 4 + 16 channels.

    The mask is 1 where the photo is known, latent frame 0 (ComfyUI's ``WAN21.concat_cond``).

    Parameters
    ----------
    noisy
        ``[B, 16, T, h, w]``.
    photo
        ``[B, 16, T, h, w]``: the photo followed by gray frames, encoded.
    """
    mask = torch.zeros_like(noisy[:, :4])
    mask[:, :, :1] = 1
    return torch.cat((noisy, mask, photo), dim=1)


def motion_velocity(network: Any, noisy: Tensor, photo: Tensor, sigmas: Tensor, text: Tensor) -> Tensor:
    """Run a Stage I network on clips.

    Parameters
    ----------
    network
        A `window_transformer.WindowTransformer`, wrapped or not.
    noisy
        ``[B, C, T, h, w]``. With C = 48 (TI2V-5B) frame 0 is the photo, clean; with 16 (A14B) all
        frames are noisy.
    photo
        ``[B, C, T, h, w]``, A14B's condition, see `motion_input`; TI2V-5B ignores it.
    sigmas
        ``[B]``.
    text
        ``[B, L, text_dim]``.
    """
    batch, channels, frames = noisy.shape[:3]
    inputs, clean = noisy, [1] * batch
    timesteps: Timesteps = frame_timesteps(sigmas, clean, frames)
    if channels == 16:
        inputs, clean = motion_input(noisy, photo), [0] * batch
        timesteps = [sigma * FULL_TIMESTEP for sigma in sigmas.tolist()]
    velocity: Tensor = network(inputs, timesteps, text, [range(frames)] * batch, clean)
    return velocity


@torch.no_grad()
def generate_motion(
    network: Any, start: Tensor, photo: Tensor, text: Tensor, noise: Tensor, sigmas: Tensor
) -> Tensor:
    """Generate a clip with Stage I, or denoise an existing one.

    Parameters
    ----------
    network
        See `motion_velocity`.
    start
        ``[B, C, T, h, w]``, the clip that is noised to ``sigmas[0]``; no effect at 1.
    photo
        ``[B, C, T, h, w]``: A14B's condition; with TI2V-5B its frame 0 is the clean photo.
    text
        ``[B, L, text_dim]``.
    noise
        ``[B, C, T, h, w]``.
    sigmas
        Descending to 0, see `sigmas.flow_sigmas`.
    """
    known = photo_first(photo, start.shape[2]) if start.shape[1] != 16 else None

    def keep(latents: Tensor) -> Tensor:
        return latents if known is None else torch.cat((known[:, :, :1], latents[:, :, 1:]), dim=2)

    def velocity(noisy: Tensor, sigma: Tensor) -> Tensor:
        return motion_velocity(network, keep(noisy), photo, sigma.expand(len(noisy)), text)

    sigmas = sigmas.to(start.device)
    return keep(euler(velocity, (1 - sigmas[0]) * start + sigmas[0] * noise, sigmas))
