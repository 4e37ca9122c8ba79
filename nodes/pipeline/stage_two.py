"""Stage II: a reference becomes the finished latent, segment by segment, over ComfyUI's own sampling."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...swifti2v_core.attention.read_only import ReadOnlyContext
from ...swifti2v_core.geometry import pixel_frame_count, pixel_size, tokens_per_latent_frame
from ...swifti2v_core.reference.keyframes import append_frames, append_zero_noise
from ...swifti2v_core.resume.saved_segments import SavedSegments
from ...swifti2v_core.seeds import clip_seed
from ...swifti2v_core.stage_two.drift_control import Offset, match_statistics, measure_offset
from ...swifti2v_core.stage_two.retake import plan_retake
from ...swifti2v_core.stage_two.segment_loop import (
    keep_masked,
    noisy_frames,
    run_segments,
    take_window,
    window_mask,
)
from ...swifti2v_core.stage_two.segments import (
    Segment,
    clamped_positions,
    plan_segments,
    true_positions,
    window_tokens,
)
from ..checks.sampling import check_noise
from ..comfyui.conditioning import guider_for_segment
from ..comfyui.progress import SamplingProgress
from ..comfyui.sampling import sample, to_storage
from ..comfyui.window_model import WindowView, aim_guider, window_bytes, window_guider
from .memory_advice import Advice, MemoryNeed, explain_out_of_memory, smaller_sizes
from .resume import Resume, open_resume

logger = logging.getLogger("SwiftI2V")

POSITIONS = {"true": true_positions, "clamped": clamped_positions}
CONTEXTS = ("bidirectional", "read-only")


@dataclass(frozen=True)
class Sampling:
    """What ComfyUI's sockets carry; none of it is changed.

    Attributes
    ----------
    guider, noise, sampler
        GUIDER, NOISE and SAMPLER.
    sigmas
        ``[steps + 1]``, falling.
    """

    guider: Any
    noise: Any
    sampler: Any
    sigmas: torch.Tensor

    @property
    def steps(self) -> int:
        """Steps of one segment."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class WindowSettings:
    """How windows are cut, shown to the model and corrected.

    Attributes
    ----------
    kind
        "concat" or "plain" weights.
    segment_frames, neighbors
        M and N.
    context
        One of `CONTEXTS`.
    time_positions
        A key of `POSITIONS`.
    reference_strength
        How much the noisy frames follow the reference channels, 0..2; 1 for plain weights.
    drift_control
        How far later segments are brought back to the first one's offset from the reference, 0..1.
    """

    kind: str
    segment_frames: int
    neighbors: int
    context: str
    time_positions: str
    reference_strength: float = 1.0
    drift_control: float = 0.0

    def plan(self, latent_frames: int, keyframes: Sequence[int] = ()) -> list[Segment]:
        """Return the segments of a clip; raises ValueError if the settings do not fit it."""
        segments = plan_segments(latent_frames, self.segment_frames, self.neighbors, keyframes)
        for segment in segments:
            self.positions(segment)
        return segments

    def plan_retake(self, segments: list[Segment], chosen: Sequence[int]) -> list[Segment]:
        """Return the chosen segments of a plan with frames after them in their windows.

        Raises ValueError if the settings do not fit such windows.
        """
        retaken = plan_retake(segments, chosen, self.neighbors)
        for segment in retaken:
            self.positions(segment)
        return retaken

    def positions(self, segment: Segment) -> tuple[int, ...]:
        """Return the time positions of a segment's window."""
        return POSITIONS[self.time_positions](segment)

    def view(self, segment: Segment, width: int, height: int) -> WindowView:
        """Return the window of a segment as the model needs to know it."""
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
        The seed it would have alone.
    latents, noise
        ``[1, 48, T, h, w]`` each.
    reference
        ``[1, 48, T, h, w]``, what Stage II begins with.
    mask
        Noise mask ``[1, 1 or 48, T, h, w]``, 0 where the reference stays, or None.
    finished
        ``[1, 48, T, h, w]``, the finished clip whose segments are made again, or None.
    """

    place: int
    seed: int
    latents: torch.Tensor
    noise: torch.Tensor
    reference: torch.Tensor
    mask: torch.Tensor | None = None
    finished: torch.Tensor | None = None


@dataclass(frozen=True)
class WindowDenoiser:
    """Makes the noisy frames of one clip's windows with one native sampling each.

    Attributes
    ----------
    sampling, settings
        See there.
    guider
        The copy of the GUIDER that is aimed at each window in turn.
    clip
        The clip, its noise extended by that of the keyframes.
    progress
        The bar and preview of the whole run.
    before
        Steps of the run before this clip.
    segments
        The segments that the run makes.
    """

    sampling: Sampling
    settings: WindowSettings
    guider: Any
    clip: Clip
    progress: SamplingProgress
    before: int
    segments: list[Segment]

    def denoise(self, segment: Segment, window: torch.Tensor) -> torch.Tensor:
        """Return a window ``[1, 48, W, h, w]`` with its noisy frames made."""
        height, width = window.shape[-2:]
        # A clean frame's reference channels hold its own latent: exactly what the window holds.
        concat = window.clone() if self.settings.kind == "concat" else None
        view = self.settings.view(segment, *pixel_size(window))
        prompts = guider_for_segment(self.sampling.guider, segment, height, width)
        aim_guider(self.guider, prompts, view, concat)
        count = self.clip.latents.shape[2]
        part = segment.noisy[0] / count, (segment.noisy[-1] + 1) / count
        mask = window_mask(segment, height, width, self.clip.mask)
        result = sample(
            self.guider,
            take_window(self.clip.noise, segment),
            window,
            self.sampling.sampler,
            self.sampling.sigmas,
            mask=mask,
            callback=self.progress.callback(self.steps_before(segment), segment.clean, part),
            # Samplers that add noise of their own must not repeat it in every segment.
            seed=clip_seed(self.clip.seed, segment.index),
        )
        _check_finite(result, segment)
        return result if self.clip.mask is None else keep_masked(result, window, mask)

    def steps_before(self, segment: Segment) -> int:
        """Return the steps of the run that end before a segment begins."""
        return self.before + self.sampling.steps * self.segments.index(segment)


def redraw(
    z_ref: dict[str, Any],
    latents: torch.Tensor,
    segments: list[Segment],
    sampling: Sampling,
    settings: WindowSettings,
    *,
    mask: torch.Tensor | None = None,
    keyframes: torch.Tensor | None = None,
    start: int = 0,
    end: int | None = None,
    finished: torch.Tensor | None = None,
    resume_name: str = "",
    clean_up: Callable[[SavedSegments], None] = SavedSegments.keep,
) -> torch.Tensor:
    """Generate ``segments[start:end]`` of a plan.

    Parameters
    ----------
    z_ref
        The LATENT of the reference.
    latents
        Working latents ``[B, 48, T, h, w]``, float32, changed in place: the reference, and finished
        frames before ``start``, or around the segments of a retake.
    segments
        The plan of T latent frames and of the keyframes, or the part of it that a retake makes again.
    sampling, settings
        See there.
    mask
        Noise mask of the clips ``[B, 1 or 48, T, h, w]``, 0 where the reference stays, or None.
    keyframes
        Clean latent frames ``[1, 48, K, h, w]`` that the plan numbers after the clip, or None.
    start, end
        The part of the segments to make.
    finished
        The finished clips of a retake ``[B, 48, T, h, w]``, or None.
    resume_name, clean_up
        See `resume.open_resume`.

    Returns
    -------
    Tensor
        The clips.

    Raises
    ------
    ValueError
        If a segment comes out as NaN, or if saved segments cannot be written.
    RuntimeError
        If memory runs out, see `explain_out_of_memory`.
    """
    begin, made = time.monotonic(), segments[start:end]
    if finished is not None:
        _log_retake(made)
    need = _window_need(latents, segments, sampling.guider, settings)
    with explain_out_of_memory(need, sampling.guider.model_patcher.load_device):
        clips = list(_read_clips(z_ref, latents, sampling.noise, mask, finished))
        determining = _determining(clips, segments, start, sampling, settings, keyframes)
        resume = open_resume(resume_name, clean_up, sampling.guider, determining)
        counts = resume.restore([clip.latents for clip in clips], made)
        guider = window_guider(sampling.guider)
        steps = sampling.steps * len(made)
        with SamplingProgress(guider.model_patcher, steps * len(clips)) as progress:
            # One clip after the other: a window takes the memory of one, and samplers that draw noise of
            # their own draw for every clip what they would draw for it alone.
            for clip, restored in zip(clips, counts, strict=True):
                before = steps * clip.place
                denoiser = WindowDenoiser(sampling, settings, guider, clip, progress, before, made)
                if restored:
                    progress.finish(before + sampling.steps * restored)
                _redraw_clip(denoiser, restored, keyframes, resume)
        if end in (None, len(segments)):
            resume.finish()
        result = torch.cat([clip.latents for clip in clips])
        _log(result, made, sampling.steps, settings, time.monotonic() - begin)
        return to_storage(result)


def _redraw_clip(
    denoiser: WindowDenoiser,
    restored: int,
    keyframes: torch.Tensor | None,
    resume: Resume,
) -> None:
    """Make the segments of one clip after those that are restored, in place."""
    clip, working = denoiser.clip, denoiser.clip.latents
    if keyframes is not None:
        working = append_frames(clip.latents, keyframes)
        noise = append_zero_noise(clip.noise, keyframes)
        denoiser = replace(denoiser, clip=replace(clip, noise=noise))
    # The frames that a retake keeps were matched to the first segment that was there.
    measured = working if clip.finished is None else clip.finished
    first = slice(1, 1 + denoiser.settings.segment_frames)
    for segment in run_segments(working, denoiser.segments, denoiser.denoise, start=restored):
        if segment.index:
            usual = measure_offset(measured[:, :, first], clip.reference[:, :, first])
            _correct_drift(working, clip, usual, segment, denoiser.settings.drift_control)
        resume.save(clip.place, segment, working)
        denoiser.progress.finish(denoiser.steps_before(segment) + denoiser.sampling.steps)
        logger.debug("Segment %d is done", segment.index)
    if keyframes is not None:
        clip.latents.copy_(working[:, :, : clip.latents.shape[2]])


def _correct_drift(
    latents: torch.Tensor, clip: Clip, usual: Offset, segment: Segment, strength: float
) -> None:
    """Bring the frames of a segment back to the first segment's offset from the reference, in place."""
    frames = noisy_frames(latents, segment)
    corrected = match_statistics(frames, noisy_frames(clip.reference, segment), usual, strength)
    if clip.mask is not None:  # where the mask is 0, the frames are the reference
        corrected = frames + noisy_frames(clip.mask, segment) * (corrected - frames)
    frames.copy_(corrected)


def _read_clips(
    z_ref: dict[str, Any],
    latents: torch.Tensor,
    noise: Any,
    mask: torch.Tensor | None,
    finished: torch.Tensor | None,
) -> Iterator[Clip]:
    # Noise has the dtype of its latent; half precision would round it.
    drawn = noise.generate_noise({**z_ref, "samples": latents})
    check_noise(drawn, latents)
    # A clip picked from a batch keeps its number, and so its seed.
    numbers = z_ref.get("batch_index") or range(len(latents))
    for place, number in enumerate(numbers):
        part = slice(place, place + 1)
        kept, old = (None if whole is None else whole[part] for whole in (mask, finished))
        seed, reference = clip_seed(noise.seed, number), z_ref["samples"][part]
        yield Clip(place, seed, latents[part], drawn[part], reference, kept, old)


def _determining(
    clips: list[Clip],
    segments: list[Segment],
    start: int,
    sampling: Sampling,
    settings: WindowSettings,
    keyframes: torch.Tensor | None,
) -> dict[str, Any]:
    """Return all that determines a run's bits beside the GUIDER, by the user's word for it."""
    given = segments[start].noisy[0]
    masks = [clip.mask for clip in clips if clip.mask is not None]
    retaken = [clip.finished for clip in clips if clip.finished is not None]
    return {
        "reference": [clip.reference for clip in clips],
        "frames before start_segment": [] if retaken else [clip.latents[:, :, 1:given] for clip in clips],
        "keyframes": keyframes,
        "noise or seed": [(clip.seed, clip.noise) for clip in clips],
        "sampler": sampling.sampler,
        "sigmas": sampling.sigmas,
        "segments": [replace(settings, drift_control=0.0), segments],
        "drift control": settings.drift_control,
        **({"noise mask": masks} if masks else {}),
        **({"the clip to retake": retaken} if retaken else {}),
    }


def _check_finite(result: torch.Tensor, segment: Segment) -> None:
    """Raise ValueError if a segment came out as NaN, before later segments build on it."""
    if not torch.isfinite(result[:, :, segment.clean :]).all():
        raise ValueError(
            f"Segment {segment.index} (latent frames {segment.noisy[0]} to {segment.noisy[-1]}) came "
            "out as NaN; usual causes are a patched attention or fp16 weights that overflow, so try "
            "without attention patches or with bf16 weights."
        )


def _window_need(
    latents: torch.Tensor, segments: list[Segment], guider: Any, settings: WindowSettings
) -> MemoryNeed:
    """Return the memory that the longest window takes, and settings that take less."""
    size = pixel_size(latents)
    segment = max(segments, key=lambda segment: len(segment.window))
    frames, noisy = len(segment.window), min(settings.segment_frames, segments[-1].noisy[-1])

    def needed(width: int, height: int, count: int, context: str = settings.context) -> float:
        view = replace(settings, context=context).view(segment, width, height)
        return window_bytes(guider, view, count, width, height)

    def smaller() -> Iterator[Advice]:
        if settings.context == "read-only":
            yield "choose bidirectional context", needed(*size, frames, "bidirectional")
        # All windows are as long as the longest: the last one gets more neighbors.
        for fewer in range(noisy - 1, 0, -1):
            yield f"the nearest segment_frames that fits is {fewer}", needed(*size, frames - noisy + fewer)
        for fewer in range(settings.neighbors - 1, -1, -1):
            left = frames - noisy + 1 - settings.neighbors + fewer
            yield f"set segment_frames to 1 and neighbors to {fewer}", needed(*size, left)
        yield from smaller_sizes(*size, lambda width, height: needed(width, height, frames))

    what = f"A window of {frames} latent frames at {size[0]}x{size[1]}"
    return MemoryNeed(what, needed(*size, frames), smaller)


def _log_retake(segments: list[Segment]) -> None:
    parts = (
        f"segment {each.index} (video frames {pixel_frame_count(each.noisy[0])} to "
        f"{pixel_frame_count(each.noisy[-1] + 1) - 1})"
        for each in segments
    )
    logger.info("Retake: %s", ", ".join(parts))


def _log(
    latents: torch.Tensor, segments: list[Segment], steps: int, settings: WindowSettings, seconds: float
) -> None:
    width, height = pixel_size(latents)
    logger.info(
        "Stage II (%s, %s): %dx%d, %d latent frames, %d segments, %d steps, %d tokens a window, %.1f s",
        settings.kind,
        settings.context,
        width,
        height,
        latents.shape[2],
        len(segments),
        steps,
        window_tokens(segments, height, width),
        seconds,
    )
