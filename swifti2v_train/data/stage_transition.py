"""Stage transition: references as a real Stage I leaves them.

The truth at low resolution is cleaner than any output of a motion model. So it is noised to a sigma and
denoised by Stage I itself in a few steps. The result has the model's softness, invented texture and
flicker, but keeps the truth's motion (SwiftI2V, section on stage-transition training).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swifti2v_core.reference.hybrid import ReferenceSettings, reference_chunks
from swifti2v_core.sigmas import RECIPE_SHIFT, even_timesteps, flow_sigmas

from ..networks.autoencoder import VideoAutoencoder, encode_clip
from ..networks.sampling import generate_motion
from ..tasks.stage_one import unshift_sigma


def to_video(frames: Tensor) -> Tensor:
    """Return frames ``[F, H, W, 3]`` as a video ``[1, 3, F, H, W]``."""
    return frames.movedim(-1, 0)[None]


def to_frames(video: Tensor) -> Tensor:
    """Return a video ``[1, 3, F, H, W]`` as frames ``[F, H, W, 3]`` in 0..1."""
    return video[0].movedim(0, -1).clamp(0, 1)


def transition_sigmas(sigma: float, steps: int) -> Tensor:
    """Return ``steps + 1`` sigmas from ``sigma`` to 0: the end of the recipe's schedule."""
    return flow_sigmas(even_timesteps(steps), RECIPE_SHIFT, unshift_sigma(sigma, RECIPE_SHIFT))


@torch.no_grad()
def denoise_again(
    network: Any,
    autoencoder: VideoAutoencoder,
    motion: Tensor,
    photo: Tensor,
    text: Tensor,
    noise: Tensor,
    sigma: float,
    steps: int,
) -> Tensor:
    """Noise the low-resolution truth and denoise it with Stage I.

    Parameters
    ----------
    network
        Stage I, a `window_transformer.WindowTransformer`.
    autoencoder
        Stage I's.
    motion
        The truth, ``[1, C, T, h, w]``.
    photo
        Stage I's condition, see `sampling.generate_motion`.
    text
        ``[1, L, text_dim]``.
    noise
        Same shape as ``motion``.
    sigma
        Noise level to start from, in (0, 1].
    steps
        Number of Euler steps.

    Returns
    -------
    Tensor
        ``[F, H, W, 3]`` in 0..1.
    """
    made = generate_motion(network, motion, photo, text, noise, transition_sigmas(sigma, steps))
    return to_frames(autoencoder.decode(made))


@torch.no_grad()
def encode_reference(
    autoencoder: VideoAutoencoder, photo: Tensor, motion: Tensor, width: int, height: int
) -> Tensor:
    """Return the hybrid reference as the Anchor Encode node builds it.

    Parameters
    ----------
    autoencoder
        Stage II's.
    photo
        ``[1, H, W, 3]``.
    motion
        ``[F, h, w, 3]``.
    width, height
        Size of the result in pixels.

    Returns
    -------
    Tensor
        ``z_ref``, ``[1, 48, T, height / 16, width / 16]``.
    """
    settings = ReferenceSettings(width, height, len(motion))
    video = to_video(torch.cat([*reference_chunks(photo, motion, settings)]))
    return encode_clip(autoencoder, video, video[:, :, :1])
