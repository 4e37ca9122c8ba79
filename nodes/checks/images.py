"""IMAGEs: photos, motion clips, keyframes, and the memory that frames take."""

from __future__ import annotations

from typing import Any

import torch

from ...swifti2v_core.geometry import FRAMES_PER_LATENT, nearest_multiple
from ...swifti2v_core.reference.keyframes import parse_keyframe_times
from ...swifti2v_core.text import shortened
from ..comfyui.vae import streams
from .describe import kind_of
from .numbers import check_finite, check_frames_fit_memory

LARGEST_SIDE = 16384
"""Side of an IMAGE in pixels, ComfyUI's own limit."""

FRAMES_AT_ONCE = 1 + FRAMES_PER_LATENT
"""Frames that are held at once where a clip is streamed."""

PIXEL_VALUES = (16.0, "an IMAGE goes from 0 to 1; divide it by 255 if it counts to 255")
"""Magnitude and rule for `check_finite`; slightly too bright is no mistake."""


def check_image(value: Any, what: str) -> None:
    """Raise ValueError unless ``value`` is an IMAGE ``[F, H, W, 3 or 4]`` of at least one finite frame."""
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
    check_frames_fit_memory(1, min(len(value), FRAMES_AT_ONCE), width, height)
    check_finite(value, what, *PIXEL_VALUES)


def check_motion(value: Any, photos: int) -> None:
    """Raise ValueError unless ``value`` is an IMAGE with one clip per photo, all of one length."""
    check_image(value, "The motion clip")
    if len(value) % photos:
        raise ValueError(
            f"The motion clip has {len(value)} frames for {photos} photos, but must hold one clip for "
            "each photo, all of one length, one after the other; the nearest valid number of frames is "
            f"{nearest_multiple(len(value), photos)}."
        )


def check_video(frames: Any, photos: int) -> None:
    """Raise ValueError unless frames that a VIDEO gives one by one are the motion of a photo."""
    count, height, width = frames.shape[:3]
    if photos != 1:
        raise ValueError(
            f"The photo is a batch of {photos} images, but a VIDEO is the motion of one; pick one with "
            "ImageFromBatch."
        )
    check_frames_fit_memory(1, min(count, FRAMES_AT_ONCE), width, height)


def check_times_have_keyframes(text: str, keyframes: Any) -> None:
    """Raise ValueError if there are times, but no keyframes."""
    if text.strip() and keyframes is None:
        raise ValueError(
            f'keyframe_times is "{shortened(text)}", but no keyframes are connected; connect them, or '
            "leave it empty."
        )


def read_keyframe_numbers(value: Any, text: str, frames: int, photos: int) -> list[int]:
    """Return the frame numbers of an optional IMAGE of keyframes."""
    if value is None:
        return []
    check_image(value, "keyframes")
    if photos != 1:
        raise ValueError(
            f"The photo is a batch of {photos} images, but keyframes belong to one clip; pick one with "
            "ImageFromBatch, or disconnect the keyframes."
        )
    return parse_keyframe_times(text, len(value), frames)


def check_clip_fits_memory(vae: Any, frames: int, width: int, height: int) -> None:
    """Raise ValueError if the frames that a VAE holds at once exceed the machine's memory."""
    check_frames_fit_memory(1, FRAMES_AT_ONCE if streams(vae) else frames, width, height)


def check_framed_fits_memory(photos: torch.Tensor, aspect: float, fit: str) -> None:
    """Raise ValueError if photos with black bars exceed the machine's memory."""
    height, width = photos.shape[1:3]
    if fit == "pad":
        check_frames_fit_memory(
            1, 1, max(width, round(height * aspect)), max(height, round(width / aspect))
        )
