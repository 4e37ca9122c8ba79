"""The segment loop: take a window, denoise it, write its new latent frames back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .segments import Segment

Denoise = Callable[[Segment, Tensor], Tensor]
"""Takes a segment and its window ``[B, C, W, h, w]``, returns the denoised window, same shape."""


def take_window(latents: Tensor, segment: Segment) -> Tensor:
    """Return a copy of the window's latent frames, ``[B, C, W, h, w]``, in the model's order."""
    return latents[:, :, list(segment.window)]


def noisy_frames(latents: Tensor, segment: Segment) -> Tensor:
    """Return the latent frames that a segment generates, ``[B, C, M, h, w]``, as a view."""
    return latents[:, :, segment.noisy[0] : segment.noisy[-1] + 1]


def run_segments(
    latents: Tensor, segments: Sequence[Segment], denoise: Denoise, *, start: int = 0
) -> Iterator[Segment]:
    """Generate the clip segment by segment, writing each result back before the next one starts.

    The write-back is the paper's *update* (SwiftI2V, figure of the method): later windows see
    generated neighbors, not reference frames. Clean frames of a result are ignored, so anchor and
    finished frames stay bit-exact.

    Parameters
    ----------
    latents
        Working latents ``[B, C, T, h, w]``, changed in place: frames before segment ``start`` are
        finished, the others are the reference ``z_ref``. Latent frame 0 is the anchor.
    segments
        The plan for T latent frames.
    denoise
        Denoises one window.
    start
        Index of the first segment to run; two partial runs give the same latents as one.

    Yields
    ------
    Segment
        The segment that was just written into ``latents``.

    Raises
    ------
    ValueError
        If ``denoise`` returns a shape other than the one it received.
    """
    for segment in segments[start:]:
        window = take_window(latents, segment)
        result = denoise(segment, window)
        if result.shape != window.shape:
            raise ValueError(
                f"denoise returned {tuple(result.shape)} for a window of {tuple(window.shape)}."
            )
        noisy_frames(latents, segment).copy_(result[:, :, segment.clean :])
        yield segment


def keep_finished(latents: Tensor, finished: Tensor, segment: Segment) -> None:
    """Copy the frames before a segment from a finished clip into working latents, in place.

    Parameters
    ----------
    latents, finished
        ``[B, C, T, h, w]`` each. The anchor and the frames of ``latents`` from the segment on are kept:
        they are the reference that the segment follows.
    segment
        The first segment to generate again.
    """
    stop = segment.noisy[0]
    latents[:, :, 1:stop] = finished[:, :, 1:stop].to(latents)


def clean_mask(frames: int, clean: int, height: int, width: int) -> Tensor:
    """Return the noise mask ``[1, 1, frames, height, width]``: 0 on clean frames, 1 elsewhere.

    Parameters
    ----------
    frames, clean
        Number of latent frames, and of leading ones that are clean.
    height, width
        Size of the latent.
    """
    mask = torch.ones(1, 1, frames, height, width)
    mask[:, :, :clean] = 0
    return mask


def window_mask(segment: Segment, height: int, width: int, mask: Tensor | None = None) -> Tensor:
    """Return the noise mask of a segment's window, ``[1, 1 or C, W, height, width]``.

    Parameters
    ----------
    segment
        The segment.
    height, width
        Size of the latent.
    mask
        Noise mask of the clip ``[1, 1 or C, T, height, width]``, 0 where the reference stays; None makes
        all of the noisy frames.
    """
    clean = clean_mask(len(segment.window), segment.clean, height, width)
    if mask is None:
        return clean
    whole = clean.repeat(1, mask.shape[1], 1, 1, 1)
    whole[:, :, segment.clean :] = noisy_frames(mask, segment)
    return whole


def keep_masked(result: Tensor, window: Tensor, mask: Tensor) -> Tensor:
    """Return a finished window that keeps the reference's bits where its noise mask is 0.

    Parameters
    ----------
    result
        What the sampling returned, ``[1, C, W, h, w]``.
    window
        What the sampling was given.
    mask
        Noise mask of the window, ``[1, 1 or C, W, h, w]``.
    """
    return result.where(mask.to(result) > 0, window.to(result))
