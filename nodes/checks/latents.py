"""Images and latents."""

from __future__ import annotations

from typing import Any

import torch

from ...swifti2v_core import geometry
from ...swifti2v_core.reference.keyframes import parse_keyframe_times
from ...swifti2v_core.text import shortened
from ..comfyui import host
from ..pipeline import autoencoder
from .describe import kind_of, shown, whole_numbers
from .models import VAES, vae
from .numbers import finite, fits_memory, frames_fit_memory

KEYFRAME_TIMES = "swifti2v_keyframe_times"
"""Entry of a LATENT of keyframes: the latent frame of the clip that each belongs to."""

BATCH_INDEX = "batch_index"
"""Entry of a LATENT that was picked from a batch: the numbers that its clips had there."""

LARGEST_SIDE = 16384
"""Side of an IMAGE in pixels, ComfyUI's own limit."""

LARGEST_BATCH_INDEX = 9999
"""ComfyUI draws the noise of all clips before the one that was picked."""

WORKING_COPIES = 3
"""What a segment sampler holds of a clip: working latents, noise and the result."""

ONCE = 1 + geometry.FRAMES_PER_LATENT
"""Frames that are held at once where a clip is streamed."""

PIXEL_VALUES = (16.0, "an IMAGE goes from 0 to 1; divide it by 255 if it counts to 255")
LATENT_VALUES = (1e4, "those of a latent are about -10 to 10; check the node that makes it")
"""Magnitude and rule for `values.finite`; what is a little too bright is no mistake."""


def image(value: Any, what: str) -> torch.Tensor:
    """Return ``value`` if it is an IMAGE ``[F, H, W, 3 or 4]`` of at least one frame and finite values."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be an IMAGE.")
    if value.ndim != 4 or value.shape[-1] not in (3, 4):
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, but an IMAGE has (frames, height, width, 3)."
        )
    if 0 in value.shape:
        raise ValueError(f"{what} is empty (shape {tuple(value.shape)}); connect at least one frame.")
    height, width = value.shape[1:3]
    if max(height, width) > LARGEST_SIDE:
        scale = LARGEST_SIDE / max(height, width)
        raise ValueError(
            f"{what} is {width}x{height}, but no side may be longer than {LARGEST_SIDE}; the nearest valid "
            f"size is {max(1, int(width * scale))}x{max(1, int(height * scale))}."
        )
    frames_fit_memory(1, min(len(value), ONCE), width, height)
    finite(value, what, *PIXEL_VALUES)
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
    if not (isinstance(value, dict) and "samples" in value):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be a LATENT.")
    samples = value["samples"]
    if not isinstance(samples, torch.Tensor):
        raise ValueError(
            f"{what} holds samples of the class {type(samples).__name__}, but must hold one tensor; "
            "connect the latent of a video."
        )
    if samples.ndim != 5 or 0 in samples.shape:
        raise ValueError(
            f"{what} has shape {tuple(samples.shape)}, but a video latent has "
            "(batch, channels, latent frames, height, width), none of them 0."
        )
    frames = samples.shape[2]
    fits_memory(
        f"{what} with {frames} latent frames, its noise and the result",
        WORKING_COPIES * samples.numel() * torch.float32.itemsize,
        lambda part: f"number of latent frames is {max(2, int(frames * part))}",
    )
    finite(samples, what, *LATENT_VALUES)
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


def decodable_at_once(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT whose frames a VAE can decode to one IMAGE."""
    samples = decodable(value, decoder)
    clips, _, latent_frames, height, width = samples.shape
    cell = autoencoder.cell_size(decoder)
    frames_fit_memory(clips, geometry.pixel_frame_count(latent_frames), width * cell, height * cell)
    return samples


def one_decodable_clip(value: Any, decoder: Any) -> tuple[torch.Tensor, int, int]:
    """Return the samples of a LATENT of one clip that a VAE can decode, its width and height in pixels."""
    samples = decodable(value, decoder)
    if len(samples) != 1:
        raise ValueError(
            f"samples is a batch of {len(samples)} clips, but a file holds one; "
            "pick one with LatentFromBatch."
        )
    cell = autoencoder.cell_size(decoder)
    height, width = (side * cell for side in samples.shape[-2:])
    clip_fits_memory(decoder, geometry.pixel_frame_count(samples.shape[2]), width, height)
    return samples, width, height


def clip_fits_memory(vae: Any, frames: int, width: int, height: int) -> None:
    """Raise ValueError if what a VAE holds of a clip at once needs more memory than the machine has."""
    frames_fit_memory(1, ONCE if autoencoder.streams(vae) else frames, width, height)


def framed_fits_memory(photos: torch.Tensor, aspect: float, fit: str) -> None:
    """Raise ValueError if black bars make photos that need more memory than the machine has."""
    height, width = photos.shape[1:3]
    if fit == "pad":
        frames_fit_memory(1, 1, max(width, round(height * aspect)), max(height, round(width / aspect)))


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
    _check_batch_index(value.get(BATCH_INDEX), len(samples))
    return samples


def _check_batch_index(numbers: Any, clips: int) -> None:
    """Raise ValueError unless a LATENT's entry of that name, if it has one, numbers its clips."""
    if numbers is None:
        return
    if not whole_numbers(numbers, clips) or not all(0 <= each <= LARGEST_BATCH_INDEX for each in numbers):
        raise ValueError(
            f"The batch_index of z_ref is {shown(numbers)}, but must hold a number from 0 to "
            f"{LARGEST_BATCH_INDEX} for each of its {clips} clips; remove the node that adds it."
        )


def keyframe_numbers(value: Any, text: str, frames: int, photos: int) -> list[int]:
    """Return the frame numbers of an optional IMAGE of keyframes."""
    if value is None:
        if text.strip():
            host.logger.warning('keyframe_times is "%s", but no keyframes are connected.', shortened(text))
        return []
    image(value, "keyframes")
    if photos != 1:
        raise ValueError(
            f"The photo is a batch of {photos} images, but keyframes belong to one clip; pick one with "
            "ImageFromBatch, or disconnect the keyframes."
        )
    return parse_keyframe_times(text, len(value), frames)


def keyframe_latents(value: Any, z_ref: torch.Tensor) -> tuple[torch.Tensor | None, list[int]]:
    """Return the latent frames and times of an optional LATENT of keyframes."""
    if value is None:
        return None, []
    samples = stage_two_latent(value, "keyframes")
    times = value.get(KEYFRAME_TIMES)
    if not whole_numbers(times, samples.shape[2]) or len(samples) != 1:
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
