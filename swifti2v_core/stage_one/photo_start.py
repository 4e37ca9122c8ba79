"""The photo as the input of a Stage I model: concatenated condition or clean first latent frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import FRAMES_PER_LATENT

GRAY = 0.5
"""Value of the frames after the photo; Wan2.2-I2V-A14B was trained with gray."""


def photo_then_gray(photo: Tensor, frames: int) -> Tensor:
    """Return a clip ``[frames, H, W, 3]`` with the photo ``[1, H, W, 3]`` first and gray after it.

    Encoded, this is the concatenated condition of Wan2.2-I2V-A14B (Wan2.2 repository, image2video). Several
    known frames may take the place of the photo.
    """
    clip = torch.full((frames, *photo.shape[1:]), GRAY, dtype=photo.dtype, device=photo.device)
    clip[: len(photo)] = photo
    return clip


def mask_with_known_end(mask: Tensor) -> Tensor:
    """Return the mask ``[1, 4, T, h, w]`` of a condition whose last video frame is known, too.

    A channel for each of the four video frames of a latent frame, as Wan's image-to-video models read it.

    Parameters
    ----------
    mask
        ``[1, 1, T, h, w]``, 0 on known latent frames.
    """
    channels = mask.repeat(1, FRAMES_PER_LATENT, 1, 1, 1)
    channels[:, -1, -1] = 0
    return channels


def photo_first(photo_latent: Tensor, latent_frames: int) -> Tensor:
    """Return a latent ``[B, C, T, h, w]`` with the photo's latent first and zeros after it.

    The photo is the clean latent frame 0 of Wan2.2-TI2V (Wan2.2 repository, textimage2video). Several known
    frames may take its place.
    """
    latent = photo_latent.new_zeros(*photo_latent.shape[:2], latent_frames, *photo_latent.shape[-2:])
    latent[:, :, : photo_latent.shape[2]] = photo_latent
    return latent


def amplify_motion(reference: Tensor, known: int, strength: float) -> Tensor:
    """Return a concatenated condition whose gray frames differ more from the last known frame.

    Few-step models move little, and the condition tells them how much: a gray frame says that everything
    may change. Its difference from the photo is amplified around its mean over the picture, which keeps
    the mean color of every frame and with it the brightness of the clip. A mean per channel commutes with
    the scaling per channel that models put before their latents.

    Parameters
    ----------
    reference
        ``[1, C, T, h, w]``: known frames, then gray ones.
    known
        Number of known frames, at least 1; they stay as they are.
    strength
        Factor of the difference; 1 changes no bit.
    """
    gray = reference[:, :, known:]
    difference = gray - reference[:, :, known - 1 : known]
    deviation = difference - difference.mean(dim=(-2, -1), keepdim=True)
    return torch.cat((reference[:, :, :known], gray + (strength - 1) * deviation), dim=2)


def keep_clean(result: Tensor, clean: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``result`` with the clean frames (``mask`` 0) taken from ``clean``."""
    return result if mask is None else torch.where(mask.to(result.device) > 0, result, clean)
