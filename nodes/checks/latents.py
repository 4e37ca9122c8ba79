"""LATENTs: references, clips to decode, keyframes."""

from __future__ import annotations

from typing import Any

import torch

from ...swifti2v_core.geometry import check_size, pixel_frame_count, pixel_size
from ..comfyui.sampling import mask_of_shape
from ..comfyui.vae import pixel_size_of, vae_channels
from .describe import are_whole_numbers, kind_of, shown
from .images import check_clip_fits_memory
from .models import VAES, check_vae
from .numbers import check_finite, check_fits_memory, check_frames_fit_memory

KEYFRAME_TIMES = "swifti2v_keyframe_times"
"""Entry of a LATENT of keyframes: the latent frame of the clip that each belongs to."""

BATCH_INDEX = "batch_index"
"""Entry of a LATENT that was picked from a batch: the numbers that its clips had there."""

NOISE_MASK = "noise_mask"
"""Entry of a LATENT, as Set Latent Noise Mask adds it: 0 where samplers keep the latent, 1 elsewhere."""

MASK_TOLERANCE = 1e-3
"""How far beyond 0 and 1 rounding may take the values of a mask."""

LARGEST_BATCH_INDEX = 9999
"""ComfyUI draws the noise of all clips before the one that was picked."""

WORKING_COPIES = 3
"""Copies of a clip in a segment sampler: working latents, noise and the result."""

LATENT_VALUES = (1e4, "those of a latent are about -10 to 10; check the node that makes it")
"""Magnitude and rule for `check_finite`."""


def read_latent(value: Any, what: str) -> torch.Tensor:
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
    check_fits_memory(
        f"{what} with {frames} latent frames, its noise and the result",
        WORKING_COPIES * samples.numel() * torch.float32.itemsize,
        lambda part: f"number of latent frames is {max(2, int(frames * part))}",
    )
    check_finite(samples, what, *LATENT_VALUES)
    return samples


def read_stage_two_latent(value: Any, what: str) -> torch.Tensor:
    """Return the samples of a video LATENT with the 48 channels of Stage II."""
    samples = read_latent(value, what)
    if samples.shape[1] != 48:
        raise ValueError(
            f"{what} has {samples.shape[1]} channels, but Stage II needs 48; encode it with the Wan2.2 VAE."
        )
    return samples


def read_reference(value: Any) -> torch.Tensor:
    """Return the samples of a ``z_ref`` LATENT that Stage II can work on."""
    samples = read_stage_two_latent(value, "z_ref")
    check_size(*pixel_size(samples))
    # A latent that holds the photo alone, as ComfyUI's own image-to-video nodes make it, has no motion.
    if not (samples[:, :, 1:] if samples.shape[2] > 1 else samples).any():
        raise ValueError(
            "z_ref is empty (all zeros), but Stage II needs the photo and the motion in it; "
            "connect SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    _check_batch_index(value.get(BATCH_INDEX), len(samples))
    return samples


def read_noise_mask(value: dict[str, Any], samples: torch.Tensor) -> torch.Tensor | None:
    """Return the noise mask of ``z_ref`` in the size of its samples, None if it has none.

    Returns
    -------
    Tensor or None
        ``[B, 1 or 48, T, h, w]``.
    """
    mask = value.get(NOISE_MASK)
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or not 2 <= mask.ndim <= 5 or 0 in mask.shape:
        raise ValueError(
            f"The noise mask of z_ref is a {kind_of(mask)}, but must be a MASK; use Set Latent Noise Mask."
        )
    rule = "must be 0 where z_ref stays and up to 1 elsewhere; check the node that makes the mask"
    check_finite(mask, "The noise mask of z_ref", 1 + MASK_TOLERANCE, rule)
    if mask.min() < -MASK_TOLERANCE:
        raise ValueError(f"The noise mask of z_ref holds values from {float(mask.min()):g}, but {rule}.")
    return mask_of_shape(mask.float().clamp(0, 1), tuple(samples.shape))


def check_no_noise_mask(value: Any, what: str) -> None:
    """Raise ValueError if a LATENT carries a noise mask that would have no influence."""
    if value is not None and value.get(NOISE_MASK) is not None:
        raise ValueError(
            f"{what} carries a noise mask, but what is sampled is z_ref; connect Set Latent Noise Mask "
            f"between Anchor Encode and the input z_ref, and {what} without it."
        )


def _check_batch_index(numbers: Any, clips: int) -> None:
    """Raise ValueError unless a LATENT's entry of that name, if it has one, numbers its clips."""
    if numbers is None:
        return
    if not are_whole_numbers(numbers, clips) or not all(
        0 <= each <= LARGEST_BATCH_INDEX for each in numbers
    ):
        raise ValueError(
            f"The batch_index of z_ref is {shown(numbers)}, but must hold a number from 0 to "
            f"{LARGEST_BATCH_INDEX} for each of its {clips} clips; remove the node that adds it."
        )


def read_keyframes(value: Any, z_ref: torch.Tensor) -> tuple[torch.Tensor | None, list[int]]:
    """Return the latent frames and times of an optional LATENT of keyframes."""
    if value is None:
        return None, []
    samples = read_stage_two_latent(value, "keyframes")
    times = value.get(KEYFRAME_TIMES)
    if not are_whole_numbers(times, samples.shape[2]) or len(samples) != 1:
        raise ValueError(
            "keyframes carries no times, which a saved latent loses; connect the output keyframes of "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    if samples.shape[-2:] != z_ref.shape[-2:]:
        wide, high = pixel_size(z_ref)
        width, height = pixel_size(samples)
        raise ValueError(
            f"keyframes is {width}x{height}, but z_ref is {wide}x{high}; connect both outputs of one "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples, times


def check_same_shape(value: torch.Tensor, other: torch.Tensor) -> None:
    """Raise ValueError unless a started latent fits its reference."""
    if value.shape != other.shape:
        raise ValueError(
            f"latent has shape {tuple(value.shape)} and z_ref {tuple(other.shape)}, but both must "
            "be the same clip; connect the output of a segment sampler that used this z_ref."
        )


def read_decodable(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT that a VAE can decode."""
    samples = read_latent(value, "samples")
    check_vae(decoder)
    channels = vae_channels(decoder)
    if samples.shape[1] != channels:
        maker = VAES.get(samples.shape[1], "the VAE that made it")
        raise ValueError(
            f"samples has {samples.shape[1]} channels, but this VAE decodes {channels}; load {maker}."
        )
    return samples


def read_decodable_images(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT whose frames fit into memory as one IMAGE."""
    samples = read_decodable(value, decoder)
    frames = pixel_frame_count(samples.shape[2])
    check_frames_fit_memory(len(samples), frames, *pixel_size_of(decoder, samples))
    return samples


def read_decodable_clips(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT that a VAE can decode clip by clip."""
    samples = read_decodable(value, decoder)
    check_clip_fits_memory(decoder, pixel_frame_count(samples.shape[2]), *pixel_size_of(decoder, samples))
    return samples
