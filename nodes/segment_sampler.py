"""Stage II: the CSG segment sampler."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core.resume.saved_segments import check_name
from ..swifti2v_core.sigmas import check_denoise, check_timesteps
from ..swifti2v_core.stage_two.reference_strength import MAX_STRENGTH
from ..swifti2v_core.stage_two.retake import keep_others
from ..swifti2v_core.stage_two.segment_loop import keep_finished
from . import shared_inputs
from .checks.conditioning import (
    check_guider_conditions,
    check_prompt_ranges,
    check_regions,
    read_prompts,
)
from .checks.latents import (
    check_no_noise_mask,
    check_same_shape,
    read_keyframes,
    read_noise_mask,
    read_reference,
    read_stage_two_latent,
)
from .checks.models import check_no_context_windows, check_whole_windows, read_stage_two_kind
from .checks.sampling import (
    check_custom_sampling,
    check_has_started,
    check_segment_order,
    read_retake,
    read_segment_range,
    read_sigmas,
)
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.sampling import SeededNoise, cfg_guider, make_sampler, sampler_names, schedule
from .pipeline.stage_two import CONTEXTS, POSITIONS, Sampling, WindowSettings, redraw
from .shared_inputs import CATEGORY, CHECKPOINT_FILES, KEEP

logger = logging.getLogger("SwiftI2V")

DENOISE = {"concat": 1.0, "plain": 0.5}
"""What denoise 0 means, by kind of weights; plain ones know the motion only through the noised z_ref."""


def _window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "segment_frames",
            default=3,
            min=1,
            max=1000,
            tooltip="Latent frames made at a time (M); one is 4 video frames. Default 3, what the paper "
            "and the weights use. Larger windows cost more memory and time per token. At least 1; as "
            "large as the clip gives ordinary sampling.",
        ),
        io.Int.Input(
            "neighbors",
            default=1,
            min=0,
            max=1000,
            tooltip="Finished latent frames before the segment that the model sees (N). Default 1, what "
            "the paper uses. 0 is faster and joins segments worse; more cost memory. Not more than "
            "the clip has.",
        ),
        io.Combo.Input(
            "context",
            options=list(CONTEXTS),
            default="bidirectional",
            advanced=True,
            tooltip="Whether photo and neighbors may look at the frames being made. bidirectional "
            "(default) is what the paper and the weights use. read-only reuses their keys and values "
            "after the first step, which is faster and keeps about 1.3 GB per clean latent frame in GPU "
            "memory (2560x1408, TI2V-5B; twice that when cfg is not 1), but joins segments worse unless "
            "the weights were trained so.",
        ),
        io.Combo.Input(
            "time_positions",
            options=list(POSITIONS),
            default="true",
            advanced=True,
            tooltip="Time positions of a window for the model. true (default): its place in the "
            "clip. clamped: moved back into the 31 latent frames the model was trained on, for clips "
            "of more than 121 frames that change late in the clip.",
        ),
    ]


def _reference_strength_input() -> io.Float.Input:
    return io.Float.Input(
        "reference_strength",
        default=1.0,
        min=0.0,
        max=MAX_STRENGTH,
        step=0.05,
        round=0.01,
        optional=True,
        advanced=True,
        tooltip="How much the frames follow the motion reference. Concat weights only; plain ones have "
        "denoise for it. Default 1: as trained. 0: not at all. Below 1 the model invents more, above 1 "
        "it clings to the reference. From 0 to 2; anything but 0 and 1 runs the model twice per step, "
        "which takes twice the time and, in read-only context, twice the memory kept.",
    )


def _drift_control_input() -> io.Float.Input:
    return io.Float.Input(
        "drift_control",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        round=0.01,
        optional=True,
        advanced=True,
        tooltip="How far later segments are brought back to the brightness, color and contrast that the "
        "first one has beside z_ref, before the next segment builds on them. Differences that moving "
        "content makes are left alone. Default 1: all of the rest. 0: not at all. From 0 to 1; costs no "
        "time.",
    )


def _keyframes_input() -> io.Latent.Input:
    return io.Latent.Input(
        "keyframes",
        optional=True,
        tooltip="The keyframes from SwiftI2V Anchor Encode: every segment also looks at the last one "
        "before it, at those inside it and at the next one. Unconnected: at the photo alone.",
    )


def _retake_input() -> io.String.Input:
    return io.String.Input(
        "retake",
        default="",
        optional=True,
        advanced=True,
        tooltip="Segments of the clip in latent to make again, for example 3, 5, counted from 0: with "
        "segment_frames 3, segment 0 is the frames 1 to 12 of the video, segment 1 the frames 13 to 24. "
        "They join the frames on both sides, and all other frames keep their bits. Change the seed. Empty "
        "(default): no retake.",
    )


def _strength_for(kind: str, strength: float) -> float:
    """Return the reference strength that weights of a kind can have; warn if it differs."""
    if kind == "plain" and strength != 1:
        logger.warning(
            "reference_strength is %s, but plain weights have no reference channels, so it has no "
            "influence; set it to 1 and lower denoise (or the first sigma) to follow the reference more.",
            strength,
        )
        return 1.0
    return strength


def _read_finished(latent: dict[str, Any] | None, reference: torch.Tensor) -> torch.Tensor | None:
    """Return the samples of a clip that is finished in part or whole, float32, if one is connected."""
    if latent is None:
        return None
    finished = read_stage_two_latent(latent, "latent")
    check_same_shape(finished, reference)
    check_no_noise_mask(latent, "latent")
    return finished.to(torch.float32)


def _z_ref_input() -> io.Latent.Input:
    return io.Latent.Input(
        "z_ref",
        tooltip="The hybrid reference from SwiftI2V Anchor Encode: latent frame 0 is the photo, the "
        "others hold the enlarged motion.",
    )


def _latent_output() -> io.Latent.Output:
    return io.Latent.Output(
        display_name="latent",
        tooltip="The finished clip. Frame 0 is the photo's latent, bit for bit. Save it with Save "
        "Latent before decoding if it took long.",
    )


def _check_checkpoint(name: str) -> None:
    if name:
        check_name(name)


def _check_denoise(denoise: float) -> None:
    """Raise ValueError unless ``denoise`` is valid, or 0 for what suits the weights."""
    if denoise != 0:
        check_denoise(denoise)


@refused_when_queued(
    (_check_denoise, ("denoise",)),
    (check_timesteps, ("timesteps",)),
    (_check_checkpoint, ("checkpoint",)),
)
class SegmentSampler(io.ComfyNode):
    """Redraw the reference at full size, segment by segment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_SegmentSampler",
            display_name="SwiftI2V CSG Segment Sampler (Stage II)",
            category=CATEGORY,
            description="Redraws the reference at full size a few frames at a time, always looking at "
            "the photo and at the frames just finished. Memory does not grow with the length of the "
            "video.",
            search_aliases=["csg", "upscale video", "long video", "stage ii", "2k video", "swifti2v"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Stage II weights from SwiftI2V Load Stage II Model or any other loader: 96 "
                    "input channels (concat) or plain Wan2.2-TI2V-5B with 48. With another loader than "
                    "SwiftI2V's, set the shift to 5 with ModelSamplingSD3.",
                ),
                _z_ref_input(),
                *shared_inputs.prompts("the video"),
                shared_inputs.seed("the detail"),
                shared_inputs.steps(),
                shared_inputs.cfg(),
                shared_inputs.sampler_name(sampler_names()),
                io.Float.Input(
                    "denoise",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much is redrawn. Default 0: by the weights, 1 for concat and 0.5 for "
                    "plain ones. Concat weights see the reference all the time. Plain weights know the "
                    "motion only through it: 0.4 to 0.6 keeps the motion and adds detail. At most 1.",
                ),
                *_window_inputs(),
                shared_inputs.timesteps(),
                _reference_strength_input(),
                _drift_control_input(),
                _keyframes_input(),
                *shared_inputs.saved_segments(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The finished clip of this z_ref whose segments retake makes again. Without "
                    "retake it has no influence.",
                ),
                _retake_input(),
            ],
            outputs=[_latent_output()],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        model: Any,
        z_ref: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        denoise: float,
        segment_frames: int,
        neighbors: int,
        context: str,
        time_positions: str,
        positive: Any = None,
        negative: Any = None,
        timesteps: str = "",
        reference_strength: float = 1.0,
        drift_control: float = 1.0,
        keyframes: dict[str, Any] | None = None,
        checkpoint: str = "",
        checkpoint_files: str = KEEP,
        latent: dict[str, Any] | None = None,
        retake: str = "",
    ) -> io.NodeOutput:
        kind = read_stage_two_kind(model)
        sigmas = schedule(model, steps, timesteps, denoise or DENOISE[kind])
        guider = cfg_guider(model, *read_prompts(model, positive, negative), cfg)
        if kind == "plain" and denoise == 1:
            logger.warning(
                "denoise is 1 with plain weights, so the motion reference has no influence; "
                "0.4 to 0.6 keeps the motion."
            )
        if latent is not None and not retake.strip():
            logger.warning("latent is connected, but retake is empty, so all segments are made.")
        return SegmentSamplerAdvanced.execute(
            noise=SeededNoise(seed),
            guider=guider,
            sampler=make_sampler(sampler_name),
            sigmas=sigmas,
            z_ref=z_ref,
            segment_frames=segment_frames,
            neighbors=neighbors,
            context=context,
            time_positions=time_positions,
            reference_strength=reference_strength,
            drift_control=drift_control,
            keyframes=keyframes,
            checkpoint=checkpoint,
            checkpoint_files=checkpoint_files,
            latent=latent,
            retake=retake,
        )


@refused_when_queued(
    (_check_checkpoint, ("checkpoint",)),
    (check_segment_order, ("start_segment", "end_segment")),
    (check_has_started, ("start_segment", "latent")),
)
class SegmentSamplerAdvanced(io.ComfyNode):
    """The segment sampler with ComfyUI's custom-sampling sockets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_SegmentSamplerAdvanced",
            display_name="SwiftI2V CSG Segment Sampler (Advanced)",
            category=CATEGORY,
            description="The segment sampler with any NOISE, GUIDER, SAMPLER and SIGMAS, and with a "
            "choice of the segments to make.",
            search_aliases=["csg", "stage ii", "custom sampling", "swifti2v"],
            inputs=[
                io.Noise.Input(
                    "noise",
                    tooltip="Noise for the whole clip, Random Noise for example. It belongs to the "
                    "latent frame, so the result does not depend on how the clip is cut.",
                ),
                io.Guider.Input(
                    "guider",
                    tooltip="Guider with the Stage II model, Basic Guider or CFG Guider for example.",
                ),
                io.Sampler.Input("sampler", tooltip="Any sampler; it runs once per segment."),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="Noise schedule of every segment. Start it below 1 with plain weights, so "
                    "that the reference keeps the motion.",
                ),
                _z_ref_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="A clip that is finished up to start_segment, to continue from; the frames "
                    "after that are made again from z_ref. With retake, the whole clip. Unconnected: all "
                    "frames are made. Must have the shape of z_ref.",
                ),
                *_window_inputs(),
                io.Int.Input(
                    "start_segment",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    advanced=True,
                    tooltip="First segment to make, from 0. Default 0. More than 0 needs the latent "
                    "that holds the segments before.",
                ),
                io.Int.Input(
                    "end_segment",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    advanced=True,
                    tooltip="Segment before which to stop, to look at the beginning of a long clip. "
                    "Default 0: make all. The frames after it stay as in the reference.",
                ),
                _reference_strength_input(),
                _drift_control_input(),
                _keyframes_input(),
                *shared_inputs.saved_segments(),
                _retake_input(),
            ],
            outputs=[_latent_output()],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        noise: Any,
        guider: Any,
        sampler: Any,
        sigmas: torch.Tensor,
        z_ref: dict[str, Any],
        segment_frames: int,
        neighbors: int,
        context: str,
        time_positions: str,
        latent: dict[str, Any] | None = None,
        start_segment: int = 0,
        end_segment: int = 0,
        reference_strength: float = 1.0,
        drift_control: float = 1.0,
        keyframes: dict[str, Any] | None = None,
        checkpoint: str = "",
        checkpoint_files: str = KEEP,
        retake: str = "",
    ) -> io.NodeOutput:
        check_custom_sampling(noise, guider, sampler)
        sigmas = read_sigmas(sigmas)
        kind = read_stage_two_kind(guider.model_patcher)
        check_no_context_windows(guider)
        check_guider_conditions(guider)
        reference = read_reference(z_ref)
        mask = read_noise_mask(z_ref, reference)
        strength = _strength_for(kind, reference_strength)
        settings = WindowSettings(
            kind, segment_frames, neighbors, context, time_positions, strength, drift_control
        )
        stills, times = read_keyframes(keyframes, reference)
        check_no_noise_mask(keyframes, "keyframes")
        segments = settings.plan(reference.shape[2], times)
        check_prompt_ranges(guider, segments)
        start, end = read_segment_range(start_segment, end_segment, len(segments))
        chosen = read_retake(retake, len(segments), start_segment, end_segment, latent is not None)
        finished = _read_finished(latent, reference)
        latents = reference.to(torch.float32, copy=True)
        if finished is not None and chosen:
            segments, end = settings.plan_retake(segments, chosen), len(chosen)
            keep_others(latents, finished, segments)
        elif finished is not None:
            keep_finished(latents, finished, segments[start])
        check_whole_windows(guider.model_patcher, segments)
        check_regions(guider, segments, *reference.shape[-2:])
        samples = redraw(
            z_ref,
            latents,
            segments,
            Sampling(guider, noise, sampler, sigmas),
            settings,
            mask=mask,
            keyframes=stills,
            start=start,
            end=end,
            finished=finished if chosen else None,
            resume_name=checkpoint,
            clean_up=CHECKPOINT_FILES[checkpoint_files],
        )
        return io.NodeOutput({"samples": samples})
