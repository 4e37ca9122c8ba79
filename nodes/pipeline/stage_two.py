"""One run of the segment loop over ComfyUI's own sampling; the nodes are in `sampler`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ...swifti2v_core.attention.read_only import ReadOnlyContext
from ...swifti2v_core.geometry import pixel_size, tokens_per_latent_frame
from ...swifti2v_core.reference.keyframes import append_frames, append_zero_noise
from ...swifti2v_core.seeds import clip_seed
from ...swifti2v_core.stage_two.drift_control import match_statistics
from ...swifti2v_core.stage_two.segment_loop import clean_mask, run_segments, take_window
from ...swifti2v_core.stage_two.segments import (
    Segment,
    clamped_positions,
    plan_segments,
    true_positions,
    window_tokens,
)
from .. import checks, prompt_range
from ..comfyui import host
from ..comfyui.progress import SamplingProgress
from ..comfyui.window_model import WindowView
from . import resume
from .memory_advice import Advice, Work, smaller_sizes, telling

POSITIONS = {"true": true_positions, "clamped": clamped_positions}
CONTEXTS = ("bidirectional", "read-only")


@dataclass(frozen=True)
class WindowOptions:
    """How windows are cut and shown to the model.

    Attributes
    ----------
    segment_frames, neighbors
        M and N.
    context
        One of `CONTEXTS`.
    time_positions
        A key of `POSITIONS`.
    reference_strength
        How much the noisy frames follow the reference channels, 0..2; 1 for plain weights.
    """

    segment_frames: int
    neighbors: int
    context: str
    time_positions: str
    reference_strength: float = 1.0

    def plan(self, latent_frames: int, keyframes: Sequence[int] = ()) -> list[Segment]:
        """Return the segments of a clip; raises ValueError if the options do not fit it."""
        segments = plan_segments(latent_frames, self.segment_frames, self.neighbors, keyframes)
        for segment in segments:
            self.positions(segment)
        return segments

    def positions(self, segment: Segment) -> tuple[int, ...]:
        """Return the time positions of a segment's window."""
        return POSITIONS[self.time_positions](segment)

    def view(self, segment: Segment, width: int, height: int) -> WindowView:
        """Return what the model must know of a window of a pixel size."""
        clean_tokens = segment.clean * tokens_per_latent_frame(height, width)
        read_only = ReadOnlyContext(clean_tokens) if self.context == "read-only" else None
        return WindowView(self.positions(segment), segment.clean, read_only, self.reference_strength)


@dataclass(frozen=True)
class Clip:
    """One clip of a batch.

    Attributes
    ----------
    place
        Its place in the batch, from 0.
    seed
        What it would have alone.
    latents, noise
        ``[1, 48, T, h, w]`` each.
    """

    place: int
    seed: int
    latents: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True)
class _Run:
    """What all clips of one run share."""

    guider: Any
    segments: list[Segment]
    start: int
    progress: SamplingProgress
    checkpoint: resume.Unsaved


@dataclass(frozen=True)
class SegmentSampling:
    """One run of the segment loop over ComfyUI's own sampling.

    Attributes
    ----------
    kind
        "concat" or "plain" weights.
    guider, noise, sampler, sigmas
        As ComfyUI's sockets carry them; none is changed.
    options
        How windows are cut.
    drift_control
        How far finished frames are brought back to the reference's statistics, 0..1.
    keyframes
        Clean latent frames ``[1, 48, K, h, w]`` that the plan counts on behind the clip, or None.
    checkpoint
        Whether and where finished segments are saved.
    """

    kind: str
    guider: Any
    noise: Any
    sampler: Any
    sigmas: torch.Tensor
    options: WindowOptions
    drift_control: float
    keyframes: torch.Tensor | None
    checkpoint: resume.CheckpointChoice

    def run(
        self,
        z_ref: dict[str, Any],
        latents: torch.Tensor,
        segments: list[Segment],
        start: int = 0,
        end: int | None = None,
    ) -> torch.Tensor:
        """Generate ``segments[start:end]`` of a plan from ``latents``, which may be changed.

        Returns
        -------
        Tensor
            The clip.

        Raises
        ------
        ValueError
            If a segment comes out as NaN, or if the checkpoint cannot be written.
        RuntimeError
            If memory runs out, see `out_of_memory.telling`.
        """
        work = partial(self._work, latents, segments)
        make = partial(self._run, z_ref, latents, segments, start, end)
        return telling(work, self.guider.model_patcher.load_device, make)

    def _work(self, latents: torch.Tensor, segments: list[Segment]) -> Work:
        """Return what a user must know if a window runs out of memory."""
        options, size = self.options, pixel_size(latents)
        segment = max(segments, key=lambda segment: len(segment.window))
        frames, noisy = len(segment.window), min(options.segment_frames, segments[-1].noisy[-1])

        def need(width: int, height: int, count: int, context: str = options.context) -> float | None:
            view = replace(options, context=context).view(segment, width, height)
            return host.window_need(self.guider, view, count, width, height)

        def smaller() -> Iterator[Advice]:
            if options.context == "read-only":
                yield "choose bidirectional context", need(*size, frames, "bidirectional")
            # Windows are all as long as the longest: the last one gets more neighbors.
            for fewer in range(noisy - 1, 0, -1):
                yield (
                    f"the nearest segment_frames that fits is {fewer}",
                    need(*size, frames - noisy + fewer),
                )
            for fewer in range(options.neighbors - 1, -1, -1):
                left = frames - noisy + 1 - options.neighbors + fewer
                yield f"set segment_frames to 1 and neighbors to {fewer}", need(*size, left)
            yield from smaller_sizes(*size, lambda width, height: need(width, height, frames))

        what = f"A window of {frames} latent frames at {size[0]}x{size[1]}"
        return Work(what, need(*size, frames), smaller)

    def _run(
        self,
        z_ref: dict[str, Any],
        latents: torch.Tensor,
        segments: list[Segment],
        start: int,
        end: int | None,
    ) -> torch.Tensor:
        begin, clips, made = time.monotonic(), list(self._clips(z_ref, latents)), segments[:end]
        checkpoint = self._open_checkpoint(clips, segments, start)
        firsts = checkpoint.restore([clip.latents for clip in clips], made, start)
        guider = host.window_guider(self.guider)
        steps = (len(self.sigmas) - 1) * (len(made) - start) * len(clips)
        with SamplingProgress(guider.model_patcher, steps) as progress:
            run = _Run(guider, made, start, progress, checkpoint)
            # One clip after the other: a window takes the memory of one, and samplers that draw noise of
            # their own draw for every clip what they would draw for it alone.
            finished = torch.cat(
                [self._run_clip(run, clip, first) for clip, first in zip(clips, firsts, strict=True)]
            )
        if len(made) == len(segments):
            checkpoint.finish()
        self._log(finished, made[start:], time.monotonic() - begin)
        return host.to_storage(finished)

    def _clips(self, z_ref: dict[str, Any], latents: torch.Tensor) -> Iterator[Clip]:
        # Noise has the type of what it is drawn for; half precision would round it.
        noise = self.noise.generate_noise({**z_ref, "samples": latents})
        checks.noise_fits(noise, latents)
        # A clip picked from a batch keeps its number, and so its seed.
        numbers = z_ref.get("batch_index") or range(len(latents))
        for place, number in enumerate(numbers):
            part = slice(place, place + 1)
            yield Clip(place, clip_seed(self.noise.seed, number), latents[part], noise[part])

    def _open_checkpoint(self, clips: list[Clip], segments: list[Segment], start: int) -> resume.Unsaved:
        if not self.checkpoint.name:
            return resume.Unsaved()
        given = segments[start].noisy[0]
        determining = {
            "reference": [(clip.latents[:, :, :1], clip.latents[:, :, given:]) for clip in clips],
            "frames before start_segment": [clip.latents[:, :, 1:given] for clip in clips],
            "keyframes": self.keyframes,
            "noise or seed": [(clip.seed, clip.noise) for clip in clips],
            "sampler": self.sampler,
            "sigmas": self.sigmas,
            "segments": [self.kind, self.options, segments],
            "drift control": self.drift_control,
        }
        return self.checkpoint.open(self.guider, determining)

    def _run_clip(self, run: _Run, clip: Clip, first: int) -> torch.Tensor:
        latents, noise, count = clip.latents, clip.noise, clip.latents.shape[2]
        if self.keyframes is not None:
            latents = append_frames(latents, self.keyframes)
            noise = append_zero_noise(noise, self.keyframes)
        steps = len(self.sigmas) - 1
        before = clip.place * (len(run.segments) - run.start) - run.start

        def denoise(segment: Segment, window: torch.Tensor) -> torch.Tensor:
            done = steps * (before + segment.index)
            place = (segment.noisy[0] / count, (segment.noisy[-1] + 1) / count)
            callback = run.progress.callback(done, segment.clean, place)
            seed = clip_seed(clip.seed, segment.index)
            return self._denoise(run.guider, segment, window, take_window(noise, segment), seed, callback)

        if first > run.start:
            run.progress.finish(steps * (before + first))
        for segment in run_segments(latents, run.segments, denoise, start=first):
            run.checkpoint.save(clip.place, segment, latents)
            run.progress.finish(steps * (before + segment.index + 1))
            host.logger.debug("Segment %d of %d is done", segment.index + 1, len(run.segments))
        return latents[:, :, :count]

    def _log(self, latents: torch.Tensor, segments: list[Segment], seconds: float) -> None:
        width, height = pixel_size(latents)
        host.logger.info(
            "Stage II (%s, %s): %dx%d, %d latent frames, %d segments, %d steps, %d tokens a window, %.1f s",
            self.kind,
            self.options.context,
            width,
            height,
            latents.shape[2],
            len(segments),
            len(self.sigmas) - 1,
            window_tokens(segments, height, width),
            seconds,
        )

    def _denoise(
        self,
        guider: Any,
        segment: Segment,
        window: torch.Tensor,
        noise: torch.Tensor,
        seed: int,
        callback: Callable[..., None],
    ) -> torch.Tensor:
        height, width = window.shape[-2:]
        # A clean frame's reference channels hold its own latent: exactly what the window holds.
        concat = window.clone() if self.kind == "concat" else None
        view = self.options.view(segment, *pixel_size(window))
        host.aim_guider(guider, prompt_range.guider_for(self.guider, segment), view, concat)
        result = host.sample(
            guider,
            noise,
            window,
            self.sampler,
            self.sigmas,
            mask=clean_mask(len(segment.window), segment.clean, height, width),
            callback=callback,
            # Samplers that add noise of their own must not repeat it in every segment.
            seed=seed,
        )
        checks.finite_segment(result, segment)
        # The window's noisy frames came from z_ref: the same frames of the clip, before Stage II.
        return match_statistics(result, window, self.drift_control)
