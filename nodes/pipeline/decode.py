"""Latent to frames or bytes: streamed in exact strips where the autoencoder is known."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import torch

from ...swifti2v_core.geometry import pixel_frame_count
from ...swifti2v_core.images import FiniteCheck, to_bytes
from ...swifti2v_core.vae.counting import Cost, DecodeCounter
from ...swifti2v_core.vae.memory_plan import DecodePlan, plan_decode
from ...swifti2v_core.vae.strips import Band, StripDecoder
from ...swifti2v_core.vae.transfer import delayed_by_one
from ..comfyui import memory
from ..comfyui.progress import check_interrupted, frame_progress
from ..comfyui.vae import FREE_SHARE, RETRY_SHARE, free_bytes_after_loading, pixel_size_of, streams
from .memory_advice import MemoryNeed, shortage, smaller_sizes

logger = logging.getLogger("SwiftI2V")

Convert = Callable[[torch.Tensor], torch.Tensor]
"""Converts finished pixels on the device to the format that leaves it."""


def decode_images(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode a latent ``[B, C, T, h, w]`` to one IMAGE ``[B * F, H, W, 3]``, filled as frames arrive."""
    if not streams(vae):
        return _decode_whole(vae, latent)
    frames, (width, height) = pixel_frame_count(latent.shape[2]), pixel_size_of(vae, latent)
    images = allocate_images(len(latent) * frames, height, width)
    # Half precision is finer than what 16-bit weights compute, and takes half as long to leave the GPU.
    convert = _unchanged if vae.vae_dtype == torch.float32 else torch.Tensor.half
    report, done = frame_progress(len(images)), 0
    for clip, target in zip(latent.split(1), images.split(frames), strict=True):
        start = done
        for finished in _decode_streamed(vae, clip, convert, target):
            target[done - start : done - start + len(finished)] = finished
            done += len(finished)
            report(done)
    return images


def allocate_images(count: int, height: int, width: int) -> torch.Tensor:
    """Return room for an IMAGE."""
    return torch.empty(count, height, width, 3)


def decode_bytes(vae: Any, latent: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode one clip ``[1, C, T, h, w]``, yielding finished frames ``[n, H, W, 3]`` uint8.

    Wan autoencoders stream (`StripDecoder`); any other is decoded whole by ComfyUI.
    """
    if streams(vae):
        yield from _decode_streamed(vae, latent, to_bytes)
        return
    for frame in _decode_whole(vae, latent).split(1):
        check = FiniteCheck(frame.device)
        check.update(frame)
        _check_finite(check)
        yield to_bytes(frame)


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
    vae: Any, latent: torch.Tensor, convert: Convert, clip: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """Decode one clip, yielding whole frames on the CPU.

    Frames that come in bands are put together in ``clip``, which is made if it is not given.
    """
    check = FiniteCheck(vae.device)
    planner = DecodePlanner(vae, latent, frames_given=clip is not None)
    plan, done, ran_out = planner.first(), 0, False
    while True:
        pieces = _attempt(vae, latent, plan, _finisher(vae, check, convert))
        try:
            for frames in _skip(done, _whole_frames(planner, pieces, clip)):
                if not done:
                    _check_finite(check)  # fail at the first frames rather than at the end
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
        plan = planner.smaller(plan, of_cpu)
        if not ran_out:
            logger.warning("The decode ran out of memory and starts again in smaller strips.")
        ran_out = True
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
    planner: DecodePlanner, pieces: Iterator[tuple[Band, torch.Tensor]], clip: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Put bands together and yield frames as they are finished."""
    frames, height, width = planner.clip_size
    for band, pixels in pieces:
        if pixels.shape[1:3] == (height, width):
            yield pixels
            continue
        if clip is None:
            clip = torch.empty(frames, height, width, 3, dtype=pixels.dtype)
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


class DecodePlanner:
    """Chooses how one clip is decoded, first by what is free and then by what has failed.

    Parameters
    ----------
    vae, latent
        The clip and what decodes it.
    frames_given
        Whether memory for the clip's frames exists already.
    """

    def __init__(self, vae: Any, latent: torch.Tensor, frames_given: bool) -> None:
        self._vae, self._size = vae, (int(latent.shape[-2]), int(latent.shape[-1]))
        self._latent_frames = int(latent.shape[2])
        width, height = pixel_size_of(vae, latent)
        self.clip_size = pixel_frame_count(self._latent_frames), height, width
        self._clip_bytes = 0 if frames_given else self.clip_size[0] * height * width * 3
        self._on_cpu = vae.device.type == "cpu"
        self._free = self._free_ram = float("inf")

    def first(self) -> DecodePlan:
        """Make room for the decoder and return the plan for the memory that is free then.

        Raises
        ------
        RuntimeError
            If the frames fit only in more RAM than is free.
        """
        fastest = self._cost(DecodePlan(1), *self._size).device_bytes
        parts = [self._vae.first_stage_model.decoder, self._vae.first_stage_model.conv2]
        self._free = free_bytes_after_loading(self._vae, fastest, parts)
        self._free_ram = FREE_SHARE * memory.free_bytes(memory.CPU)
        plan = self._plan()
        if self._ram_bytes(plan) > self._free_ram:
            raise self._shortage(plan, of_cpu=True)
        return plan

    def smaller(self, plan: DecodePlan, of_cpu: bool) -> DecodePlan:
        """Return the plan to try after one ran out of memory, the CPU's if ``of_cpu``.

        It takes less of what ran out.

        Raises
        ------
        RuntimeError
            If no plan takes less.
        """
        failed, failed_ram = self._cost(plan, *self._size).device_bytes, self._ram_bytes(plan)
        if of_cpu and not self._on_cpu:
            self._free_ram = min(self._free_ram, RETRY_SHARE * failed_ram)
            smaller = self._plan()
            less = self._ram_bytes(smaller) < failed_ram
        else:
            self._free = min(self._free, RETRY_SHARE * failed)
            smaller = self._plan()
            less = self._cost(smaller, *self._size).device_bytes < failed
        if not less:
            raise self._shortage(plan, of_cpu)
        return smaller

    def _plan(self) -> DecodePlan:
        decoder, size = self._vae.first_stage_model.decoder, self._vae.vae_dtype.itemsize
        # What the CPU computes in is RAM, too: there, features in RAM save nothing.
        free_ram = 0.0 if self._on_cpu else max(0.0, self._free_ram - self._clip_bytes)
        plan = plan_decode(decoder, *self._size, size, self._free, self._latent_frames, free_ram)
        groups = "" if plan.groups == 1 else f" in {plan.groups} groups"
        logger.info("Decode: %d strips%s, %d frames at a time", plan.strips, groups, plan.frames)
        return plan

    def _ram_bytes(self, plan: DecodePlan) -> float:
        clip = self._clip_bytes if plan.groups > 1 else 0
        return clip + self._cost(plan, *self._size).ram_bytes

    def _cost(self, plan: DecodePlan, height: int, width: int) -> Cost:
        decoder, size = self._vae.first_stage_model.decoder, self._vae.vae_dtype.itemsize
        return DecodeCounter(decoder, height, width, size, self._latent_frames).cost(*astuple(plan))

    def _shortage(self, plan: DecodePlan, of_cpu: bool) -> RuntimeError:
        """Return the error for a clip that even the smallest plan cannot decode."""
        _, height, width = self.clip_size
        cell = height // self._size[0]

        def needed(wide: int, high: int) -> float:
            cost = self._cost(plan, high // cell, wide // cell)
            clip = self._clip_bytes * wide * high / (width * height) if plan.groups > 1 else 0
            return cost.ram_bytes + clip if of_cpu else cost.device_bytes

        what = f"The decode at {width}x{height}, even in {plan.strips} strips"
        need = MemoryNeed(what, needed(width, height), lambda: smaller_sizes(width, height, needed))
        return shortage(need, self._vae.device, of_cpu)
