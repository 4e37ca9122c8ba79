"""Latent to frames or bytes: streamed in exact strips where the autoencoder is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...swifti2v_core.geometry import pixel_frame_count
from ...swifti2v_core.images import FiniteCheck, to_bytes
from ...swifti2v_core.vae import memory_plan
from ...swifti2v_core.vae.strips import StripDecoder
from ...swifti2v_core.vae.transfer import delayed_by_one
from ..comfyui import memory
from ..comfyui.progress import check_interrupted, frame_progress
from ..comfyui.vae import cell_size, free_bytes_after_loading, pixel_size_of, streams
from .encode import assemble
from .memory_advice import MemoryNeed, shortage, smaller_sizes

logger = logging.getLogger("SwiftI2V")

Convert = Callable[[torch.Tensor], torch.Tensor]
"""Makes what leaves the device of frames of 0..1."""


def decode_images(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode a latent ``[B, C, T, h, w]`` to one IMAGE ``[B * F, H, W, 3]``, filled frame by frame."""
    if not streams(vae):
        return _decode_whole(vae, latent)
    count = len(latent) * pixel_frame_count(latent.shape[2])
    # Half precision is finer than what 16-bit weights compute, and takes half as long to leave the GPU.
    convert = _unchanged if vae.vae_dtype == torch.float32 else torch.Tensor.half
    pieces = (frames for clip in latent.split(1) for frames in _decode_streamed(vae, clip, convert))
    return assemble(count, pieces, frame_progress(count))


def decode_integers(vae: Any, latent: torch.Tensor, convert: Convert = to_bytes) -> Iterator[torch.Tensor]:
    """Decode one clip ``[1, C, T, h, w]``, yielding finished frames ``[n, H, W, 3]`` on the CPU.

    Wan autoencoders stream (`StripDecoder`); any other is decoded whole by ComfyUI.

    Parameters
    ----------
    vae, latent
        The VAE and its latent.
    convert
        Makes the integers that leave the device of frames of 0..1, `images.to_bytes` or `images.to_words`.
    """
    if streams(vae):
        yield from _decode_streamed(vae, latent, convert)
        return
    for frame in _decode_whole(vae, latent).split(1):
        check = FiniteCheck(frame.device)
        check.update(frame)
        _check_finite(check)
        yield convert(frame).cpu()


def _check_finite(check: FiniteCheck) -> None:
    if not check.passed():
        raise ValueError(
            "The decoded frames hold NaN or infinite values; start ComfyUI with --fp32-vae, or look for "
            "the node that made the latent."
        )


def _decode_whole(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    frames = vae.decode(latent)
    return frames.flatten(0, 1) if frames.ndim == 5 else frames  # image VAEs give no frame axis


def _unchanged(frames: torch.Tensor) -> torch.Tensor:
    return frames


def _decode_streamed(vae: Any, latent: torch.Tensor, convert: Convert) -> Iterator[torch.Tensor]:
    """Decode one clip, yielding frames on the CPU, converted on the device by ``convert``."""
    check = FiniteCheck(vae.device)

    def finish(pixels: torch.Tensor) -> torch.Tensor:
        check_interrupted()  # at every strip; whole frames can take long
        check.update(pixels)
        return convert(vae.process_output(pixels.float()))

    plan, done, ran_out = _decode_plan(vae, latent), 0, False
    while True:
        # Pinned per attempt: memory of a failed one must not stay pinned.
        with memory.pinning(vae.device) as pin:
            samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
            decoder = StripDecoder(vae.first_stage_model, plan, finish, pin)
            pieces = _skip(done, delayed_by_one(decoder.decode(samples)))
            del decoder  # its pieces keep it alive
            try:
                for frames in pieces:
                    if not done:
                        _check_finite(check)  # fail at the first piece rather than at the end
                    done += len(frames)
                    yield frames
                break
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                # Retry after this block: inside it the exception keeps the attempt's tensors alive.
                of_cpu = memory.is_out_of_cpu_memory(error)
        del pieces
        memory.release_memory()
        smaller = memory_plan.smaller_plan(plan)
        if smaller is None:
            raise shortage(_smallest_need(vae, latent), vae.device, of_cpu)
        plan = smaller
        if not ran_out:
            logger.warning("The decode ran out of memory and starts again in smaller strips.")
        ran_out = True
    _check_finite(check)


def _smallest_need(vae: Any, latent: torch.Tensor) -> MemoryNeed:
    """Return the need of a decode with the smallest plan."""
    decoder, size, plan = (
        vae.first_stage_model.decoder,
        vae.vae_dtype.itemsize,
        memory_plan.DECODE_PLANS[-1],
    )
    cell, (width, height) = cell_size(vae), pixel_size_of(vae, latent)

    def needed(wide: int, high: int) -> float:
        return memory_plan.decode_memory_bytes(decoder, high // cell, wide // cell, size, plan)

    return MemoryNeed(
        f"The decode at {width}x{height}, even in {plan.strips} strips",
        needed(width, height),
        lambda: smaller_sizes(width, height, needed),
    )


def _skip(count: int, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield pieces without their first ``count`` frames."""
    for frames in pieces:
        left = frames[min(count, len(frames)) :]
        count -= len(frames) - len(left)
        if len(left):
            yield left


def _decode_plan(vae: Any, latent: torch.Tensor) -> memory_plan.DecodePlan:
    """Make room for the decoder and choose how to cut, by the memory that is free then."""
    decoder, size, (height, width) = (
        vae.first_stage_model.decoder,
        vae.vae_dtype.itemsize,
        latent.shape[-2:],
    )
    fastest = memory_plan.decode_memory_bytes(decoder, height, width, size, memory_plan.DECODE_PLANS[0])
    free = free_bytes_after_loading(vae, fastest)
    plan = memory_plan.plan_decode(decoder, height, width, size, free)
    logger.info("Decode: %d strips, %d latent frames at a time", plan.strips, plan.latent_frames)
    return plan
