"""Sizes and frame counts of the Wan autoencoders and transformers, and conversions between them."""

from __future__ import annotations

from torch import Tensor

FRAMES_PER_LATENT = 4
"""Pixel frames per latent frame; latent frame 0 is a single pixel frame."""

LATENT_FACTOR = 16
"""Pixels per latent cell of the 48-channel autoencoder, in both directions."""

SIZE_MULTIPLE = 2 * LATENT_FACTOR
"""Autoencoder factor times transformer patch size 2, for the 48-channel family."""


def nearest_multiple(value: int, multiple: int) -> int:
    """Return the positive multiple of ``multiple`` nearest to ``value``; ties go up."""
    return max(multiple, (value + multiple // 2) // multiple * multiple)


def nearest_frame_count(frames: int) -> int:
    """Return the 4n+1 frame count (at least 5) nearest to ``frames``; ties go up."""
    latent_steps = max(1, (frames - 1 + FRAMES_PER_LATENT // 2) // FRAMES_PER_LATENT)
    return latent_steps * FRAMES_PER_LATENT + 1


def check_size(width: int, height: int, multiple: int = SIZE_MULTIPLE) -> None:
    """Check that both sides of a frame are multiples of ``multiple``.

    Parameters
    ----------
    width, height
        Frame size in pixels.
    multiple
        32 for the 48-channel family, 16 for the 16-channel one.

    Raises
    ------
    ValueError
        If a side is not a positive multiple; the message names the nearest valid size.
    """
    if width < multiple or height < multiple or width % multiple or height % multiple:
        nearest = f"{nearest_multiple(width, multiple)}x{nearest_multiple(height, multiple)}"
        raise ValueError(
            f"The size is {width}x{height}, but both sides must be multiples of {multiple}; "
            f"the nearest valid size is {nearest}."
        )


def latent_frame_count(frames: int) -> int:
    """Return the number of latent frames of a clip, ``(frames - 1) / 4 + 1``.

    Parameters
    ----------
    frames
        Pixel frames, 4n+1 with n >= 1.

    Raises
    ------
    ValueError
        If ``frames`` is not 4n+1, or if it is 1, which leaves nothing to generate after the photo.
    """
    if frames <= FRAMES_PER_LATENT or (frames - 1) % FRAMES_PER_LATENT:
        raise ValueError(
            f"The clip has {frames} frames, but the number must be 4n+1 and at least 5; "
            f"the nearest valid number is {nearest_frame_count(frames)}."
        )
    return (frames - 1) // FRAMES_PER_LATENT + 1


def latent_frame_of(frame: int) -> int:
    """Return the latent frame that contains pixel frame ``frame``."""
    return -(-frame // FRAMES_PER_LATENT)


def pixel_frame_count(latent_frames: int) -> int:
    """Return the number of pixel frames that ``latent_frames`` latent frames decode to."""
    return (latent_frames - 1) * FRAMES_PER_LATENT + 1


def pixel_size(latent: Tensor) -> tuple[int, int]:
    """Return (width, height) in pixels of a 48-channel latent ``[..., h, w]``."""
    return latent.shape[-1] * LATENT_FACTOR, latent.shape[-2] * LATENT_FACTOR


def tokens_per_latent_frame(height: int, width: int) -> int:
    """Return the transformer tokens of one latent frame of a ``height`` x ``width`` clip.

    2560x1408 pixels give 44 x 80 = 3520 tokens (factor 16, patch 1x2x2).
    """
    return (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)
