"""Images and latents."""

from __future__ import annotations

from typing import Any

import torch

from ...swifti2v_core import geometry
from ...swifti2v_core.keyframes import keyframe_frames
from .. import autoencoder, host
from .kinds import kind_of
from .models import VAES, vae

KEYFRAME_TIMES = "swifti2v_keyframe_times"
"""Entry of a LATENT of keyframes: the latent frame of the clip that each belongs to."""


def image(value: Any, what: str) -> torch.Tensor:
    """Return ``value`` if it is an IMAGE ``[F, H, W, 3 or 4]`` with frames and without NaN."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be an IMAGE.")
    if value.ndim != 4 or value.shape[-1] not in (3, 4):
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, but an IMAGE has (frames, height, width, 3)."
        )
    if 0 in value.shape:
        raise ValueError(f"{what} is empty (shape {tuple(value.shape)}); connect at least one frame.")
    if not torch.isfinite(value).all():
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    return value


def motion_of(value: Any, photos: int) -> torch.Tensor:
    """Return ``value`` if it is an IMAGE with one clip, all of one length, for each of ``photos``."""
    checked = image(value, "The motion clip")
    if len(checked) % photos:
        raise ValueError(
            f"The motion clip has {len(checked)} frames for {photos} photos, but must hold one clip for "
            "each photo, all of one length, one behind the other; the nearest valid number of frames is "
            f"{geometry.nearest_multiple(len(checked), photos)}."
        )
    return checked


def latent(value: Any, what: str) -> torch.Tensor:
    """Return the samples of a video LATENT ``[B, C, T, h, w]`` without NaN."""
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, torch.Tensor):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be a LATENT.")
    if samples.ndim != 5 or 0 in samples.shape:
        raise ValueError(
            f"{what} has shape {tuple(samples.shape)}, but a video latent has "
            "(batch, channels, latent frames, height, width), none of them 0."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    return samples


def stage_two_latent(value: Any, what: str) -> torch.Tensor:
    """Return the samples of a video LATENT with the 48 channels of Stage II."""
    samples = latent(value, what)
    if samples.shape[1] != 48:
        raise ValueError(
            f"{what} has {samples.shape[1]} channels, but Stage II needs 48; encode it with the Wan2.2 VAE."
        )
    return samples


def decodable(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT that a VAE can decode."""
    samples = latent(value, "samples")
    channels = autoencoder.vae_channels(vae(decoder))
    if samples.shape[1] != channels:
        maker = VAES.get(samples.shape[1], "the VAE that made it")
        raise ValueError(
            f"samples has {samples.shape[1]} channels, but this VAE decodes {channels}; load {maker}."
        )
    return samples


def reference(value: Any) -> torch.Tensor:
    """Return the samples of a ``z_ref`` LATENT that Stage II can work on."""
    samples = stage_two_latent(value, "z_ref")
    geometry.check_size(*geometry.pixel_size(samples))
    # A latent that holds the photo alone, as ComfyUI's own image-to-video nodes make it, has no motion.
    if not (samples[:, :, 1:] if samples.shape[2] > 1 else samples).any():
        raise ValueError(
            "z_ref is empty (all zeros), but Stage II needs the photo and the motion in it; "
            "connect SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples


def keyframe_numbers(value: Any, text: str, frames: int, photos: int) -> list[int]:
    """Return the frame numbers of an optional IMAGE of keyframes."""
    if value is None:
        if text.strip():
            host.logger.warning('keyframe_times is "%s", but no keyframes are connected.', text)
        return []
    image(value, "keyframes")
    if photos != 1:
        raise ValueError(
            f"The photo is a batch of {photos} images, but keyframes belong to one clip; pick one with "
            "ImageFromBatch, or disconnect the keyframes."
        )
    return keyframe_frames(text, len(value), frames)


def keyframe_latents(value: Any, z_ref: torch.Tensor) -> tuple[torch.Tensor | None, list[int]]:
    """Return the latent frames and times of an optional LATENT of keyframes."""
    if value is None:
        return None, []
    samples = stage_two_latent(value, "keyframes")
    times = value.get(KEYFRAME_TIMES)
    if times is None or len(times) != samples.shape[2]:
        raise ValueError(
            "keyframes carries no times, which a saved latent loses; connect the output keyframes of "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    if samples.shape[-2:] != z_ref.shape[-2:]:
        wide, high = geometry.pixel_size(z_ref)
        width, height = geometry.pixel_size(samples)
        raise ValueError(
            f"keyframes is {width}x{height}, but z_ref is {wide}x{high}; connect both outputs of one "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples, times


def same_shape(value: torch.Tensor, other: torch.Tensor) -> None:
    """Raise ValueError unless a started latent fits its reference."""
    if value.shape != other.shape:
        raise ValueError(
            f"latent has shape {tuple(value.shape)} and z_ref {tuple(other.shape)}, but both must "
            "be the same clip; connect the output of a segment sampler that used this z_ref."
        )
