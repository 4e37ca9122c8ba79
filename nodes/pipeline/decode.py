"""Latent to frames or bytes: streamed in exact strips where the autoencoder is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from ...swifti2v_core.geometry import pixel_frame_count
from ...swifti2v_core.images import FiniteCheck, to_bytes
from ...swifti2v_core.progress import Report, counting_from, silent
from ...swifti2v_core.vae.counting import Cost
from ...swifti2v_core.vae.memory_plan import DecodePlan, decode_cost, plan_decode
from ...swifti2v_core.vae.strips import Band, StripDecoder
from ...swifti2v_core.vae.transfer import delayed_by_one
from ..comfyui import memory
from ..comfyui.progress import check_interrupted, frame_progress
from ..comfyui.vae import cell_size, pixel_size_of, streams
from .vae_plans import Planner

logger = logging.getLogger("SwiftI2V")

T = TypeVar("T")

Convert = Callable[[torch.Tensor], torch.Tensor]
"""Makes what leaves the device of frames of 0..1."""


def decode_images(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode a latent ``[B, C, T, h, w]`` to one IMAGE ``[B * F, H, W, 3]``, filled as frames arrive."""
    if not streams(vae):
        return _decode_whole(vae, latent)
    frames, (width, height) = pixel_frame_count(latent.shape[2]), pixel_size_of(vae, latent)
    images = allocate_images(len(latent) * frames, height, width)
    # Half precision is finer than what 16-bit weights compute, and takes half as long to leave the GPU.
    convert = _unchanged if vae.vae_dtype == torch.float32 else torch.Tensor.half
    report = frame_progress(len(images))
    for number, (clip, target) in enumerate(zip(latent.split(1), images.split(frames), strict=True)):
        for _ in _decode_streamed(vae, clip, convert, counting_from(report, number * frames), target):
            pass  # frames are put into `target`
    return images


def allocate_images(count: int, height: int, width: int) -> torch.Tensor:
    """Return room for an IMAGE."""
    return torch.empty(count, height, width, 3)


def decode_integers(
    vae: Any, latent: torch.Tensor, convert: Convert = to_bytes, report: Report = silent
) -> Iterator[torch.Tensor]:
    """Decode one clip ``[1, C, T, h, w]``, yielding finished frames ``[n, H, W, 3]`` on the CPU.

    Wan autoencoders stream (`StripDecoder`); any other is decoded whole by ComfyUI.

    Parameters
    ----------
    vae, latent
        The VAE and its latent.
    convert
        Makes the integers that leave the device of frames of 0..1, `images.to_bytes` or `images.to_words`.
    report
        Called with how far the decode is, in frames, which can be before any frame is finished.
    """
    if streams(vae):
        yield from _decode_streamed(vae, latent, convert, report)
        return
    for done, frame in enumerate(_decode_whole(vae, latent).split(1), start=1):
        report(done)
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


def _decode_streamed(
    vae: Any, latent: torch.Tensor, convert: Convert, report: Report, clip: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """Decode one clip, yielding whole frames on the CPU, which are put into ``clip`` if it is given."""
    count = pixel_frame_count(latent.shape[2])
    value_bytes = 0 if clip is not None else convert(torch.zeros(1)).element_size()
    planner = decode_planner(vae, latent, value_bytes)
    plan, done, ran_out = first_plan(planner, vae), 0, False
    check = FiniteCheck(vae.device)
    while True:
        pieces = _checked(check, _attempt(vae, latent, plan, _finisher(vae, check, convert)))
        try:
            for frames in _skip(done, _whole_frames(count, pieces, report, clip)):
                done += len(frames)
                yield frames
            return
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            # Retry after this block: inside it the exception keeps the attempt's tensors alive.
            of_cpu = memory.is_out_of_cpu_memory(error)
        del pieces
        memory.release_memory()
        smaller = planner.smaller(plan, of_cpu)
        if smaller is None:
            raise planner.shortage(plan, of_cpu)
        plan = smaller
        if not ran_out:
            logger.warning("The decode ran out of memory and starts again in smaller strips.")
        ran_out = True


def decode_planner(vae: Any, latent: torch.Tensor, value_bytes: int) -> Planner[DecodePlan]:
    """Return the planner of a decode to values of ``value_bytes``; 0 where room for the clip exists."""
    decoder, element = vae.first_stage_model.decoder, vae.vae_dtype.itemsize
    latent_frames, cell = int(latent.shape[2]), cell_size(vae)
    width, height = pixel_size_of(vae, latent)

    def clip_bytes(wide: int, high: int) -> int:
        return value_bytes * pixel_frame_count(latent_frames) * wide * high * 3

    def choose(free: float, free_ram: float) -> DecodePlan:
        free_ram = max(0.0, free_ram - clip_bytes(width, height))
        return plan_decode(decoder, height // cell, width // cell, element, free, latent_frames, free_ram)

    def cost(plan: DecodePlan, wide: int, high: int) -> Cost:
        found = decode_cost(decoder, high // cell, wide // cell, element, plan, latent_frames)
        waiting = clip_bytes(wide, high) if plan.groups > 1 else 0
        return replace(found, ram_bytes=found.ram_bytes + waiting)

    return Planner("decode", vae, (width, height), choose, cost)


def first_plan(planner: Planner[DecodePlan], vae: Any) -> DecodePlan:
    """Return the plan for the memory that is free now."""
    plan = planner.first([vae.first_stage_model.decoder, vae.first_stage_model.conv2])
    groups = "" if plan.groups == 1 else f" in {plan.groups} groups"
    logger.info("Decode: %d strips%s, %d frames at a time", plan.strips, groups, plan.frames)
    return plan


def _checked(check: FiniteCheck, pieces: Iterator[T]) -> Iterator[T]:
    """Yield pieces; what is not finite fails at the first one rather than at the end."""
    for number, piece in enumerate(pieces):
        if number == 0:
            _check_finite(check)
        yield piece
        del piece  # frees its memory while the next one is made
    _check_finite(check)


def _finisher(vae: Any, check: FiniteCheck, convert: Convert) -> Convert:
    def finish(pixels: torch.Tensor) -> torch.Tensor:
        check_interrupted()  # at every strip; whole frames can take long
        check.update(pixels)
        return convert(vae.process_output(pixels.float()))

    return finish


def _attempt(
    vae: Any, latent: torch.Tensor, plan: DecodePlan, finish: Convert
) -> Iterator[tuple[Band, torch.Tensor]]:
    """Yield bands of pixels on the CPU, computed on the VAE's device."""
    samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
    decoder = StripDecoder(vae.first_stage_model, plan, finish)
    pieces = memory.on_device(vae.device, delayed_by_one(decoder.decode(samples)))
    return zip(decoder.bands(latent), pieces, strict=True)


def _whole_frames(
    count: int,
    pieces: Iterator[tuple[Band, torch.Tensor]],
    report: Report,
    clip: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    """Put the bands of ``count`` frames together in a clip and yield frames as they are finished."""
    for band, pixels in pieces:
        report(band.decoded(count))
        if clip is None and band.whole:
            yield pixels
            continue
        if clip is None:
            clip = band.room_for(count, pixels)
        band.of(clip).copy_(pixels)
        if band.finishes:
            yield clip[band.frames]


def _skip(count: int, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield pieces without their first ``count`` frames."""
    for frames in pieces:
        left = frames[min(count, len(frames)) :]
        count -= len(frames) - len(left)
        if len(left):
            yield left
