"""Stage I: a photo becomes a small motion clip, with an image-to-video model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core.geometry import FRAMES_PER_LATENT, check_size, latent_frame_count, pixel_frame_count
from ..swifti2v_core.images import Fit, fit_frames
from ..swifti2v_core.sigmas import EXPERT_BOUNDARY, check_timesteps, parse_timesteps
from ..swifti2v_core.stage_one.chunks import last_frames, plan_chunks
from ..swifti2v_core.stage_one.two_sizes import (
    SizeSteps,
    check_reshift_steps,
    large_photo,
    large_size,
    match_snr,
    plan_expert_steps,
    reshift_size_steps,
)
from . import shared_inputs
from .checks.conditioning import read_prompts
from .checks.images import check_framed_fits_memory, check_image
from .checks.models import check_vae, read_stage_one_latents
from .checks.numbers import check_frames_fit_memory
from .checks.sampling import check_starts_from_noise
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.memory import sampling_bytes
from .comfyui.sampling import make_sampler, sampler_names, schedule
from .pipeline.decode import decode_images
from .pipeline.memory_advice import (
    Advice,
    MemoryNeed,
    explain_out_of_memory,
    fewer_frames,
    smaller_sizes,
)
from .pipeline.stage_one import (
    MotionSampling,
    Start,
    encode_a14b,
    encode_ti2v,
    start_a14b,
    start_ti2v,
)
from .shared_inputs import CATEGORY

SIZE_MULTIPLES = {16: 16, 48: 32}
"""Multiple of both sides of a clip, in pixels, by latent channels of the model."""


def _reshift_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "reshift_steps",
            default=0,
            min=0,
            max=999,
            optional=True,
            advanced=True,
            tooltip="Noise reshifting: how many of the first steps run at a larger size, where the model "
            "lays out the scene better; the rest runs at the size of the clip. Default 0 (off). 10 of "
            "40 steps is what SURF uses. Leave it off with 4-step LoRAs and distilled models: they "
            "are trained to take their few steps without a break, and one step is already a quarter.",
        ),
        io.Float.Input(
            "reshift_scale",
            default=1.5,
            min=1.0,
            max=4.0,
            step=0.05,
            round=0.001,
            optional=True,
            advanced=True,
            tooltip="How much larger the first steps are, per side. Default 1.5; with 640x352 that is "
            "960x528 (960x544 with TI2V-5B), above the 480P that models are trained on. Ignored while "
            "reshift_steps is 0.",
        ),
        io.Boolean.Input(
            "reshift_match_snr",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Gives the rest less noise, because the same noise hides more in a smaller picture. "
            "Keeps more of the first steps' layout and leaves less to redraw. Default off, as in SURF. "
            "Ignored while reshift_steps is 0.",
        ),
    ]


def _chunk_inputs() -> list[Any]:
    return [
        io.Int.Input(
            "chunk_frames",
            default=0,
            min=0,
            max=4001,  # and no step of 4: counted from 0, it would round a typed 81 to 80
            optional=True,
            advanced=True,
            tooltip="Long clips: how many frames are sampled at once. A longer clip is made in chunks that "
            "overlap, each continuing from the last frames of the one before, so memory does not grow with "
            "the clip. A14B was trained for 81, TI2V-5B for 121. Must be 4n+1. Default 0 (the whole clip "
            "at once).",
        ),
        io.Int.Input(
            "overlap_frames",
            default=8,
            min=4,
            max=4000,
            step=4,
            optional=True,
            advanced=True,
            tooltip="How many frames a chunk shares with the one before. Default 8. More of them carry the "
            "motion on better and take longer. Must be a multiple of 4. Also sets how many frames a clip "
            "continues from (3 less). Ignored while chunk_frames is 0 and continue_from unconnected.",
        ),
    ]


def _motion_strength_input() -> io.Float.Input:
    return io.Float.Input(
        "motion_strength",
        default=1.0,
        min=1.0,
        max=2.0,
        step=0.05,
        round=0.01,
        optional=True,
        advanced=True,
        tooltip="Wan2.2-I2V-A14B: more motion from few steps, by a stronger difference between the "
        "photo and the gray frames that the model is given after it. Default 1 (off). Try 1.15; much more "
        "changes colors and detail. From 1 to 2; costs no time. TI2V-5B takes 1 only.",
    )


def _joining_inputs() -> list[Any]:
    return [
        io.Image.Input(
            "continue_from",
            optional=True,
            tooltip="A clip to continue: the new one starts from its last frames (overlap_frames - 3 of "
            "them), and the output is what comes after them, to join with Batch Images. The photo is then "
            "used for loop only. Unconnected: the clip starts from the photo.",
        ),
        io.Boolean.Input(
            "loop",
            default=False,
            optional=True,
            advanced=True,
            tooltip="The clip ends at the photo, so that it can be played in a circle. Default off. "
            "Wan2.2-I2V-A14B only, and not in chunks.",
        ),
    ]


def _check_smallest_grid(width: int, height: int) -> None:
    check_size(width, height, min(SIZE_MULTIPLES.values()))


def _check_one_size(frames: int, chunk_frames: int, reshift_steps: int) -> None:
    """Raise ValueError if a clip in chunks asks for two sizes."""
    if 0 < chunk_frames < frames and reshift_steps:
        raise ValueError(
            f"reshift_steps is {reshift_steps}, but a clip in chunks continues from frames that exist at "
            "its own size only; the nearest valid value is 0, or set chunk_frames to 0."
        )


def _check_last_frame(frames: int, chunk_frames: int, loop: bool) -> None:
    """Raise ValueError if a clip in chunks asks for a last frame."""
    if 0 < chunk_frames < frames and loop:
        raise ValueError(
            "loop is on, but a clip in chunks is encoded without its last frame; turn it off, or set "
            "chunk_frames to 0."
        )


def _check_reshift_steps(reshift_steps: int, steps: int, timesteps: str) -> None:
    if reshift_steps:
        check_reshift_steps(reshift_steps, len(parse_timesteps(timesteps)) if timesteps.strip() else steps)


@refused_when_queued(
    (_check_smallest_grid, ("width", "height")),
    (plan_chunks, ("frames", "chunk_frames", "overlap_frames")),
    (_check_one_size, ("frames", "chunk_frames", "reshift_steps")),
    (_check_last_frame, ("frames", "chunk_frames", "loop")),
    (check_timesteps, ("timesteps",)),
    (check_starts_from_noise, ("timesteps",)),
    (_check_reshift_steps, ("reshift_steps", "steps", "timesteps")),
)
class MotionSampler(io.ComfyNode):
    """Make the small motion clip with an image-to-video model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_MotionSampler",
            display_name="SwiftI2V Motion Sampler (Stage I)",
            category=CATEGORY,
            description="Turns the photo into a small motion clip with Wan2.2-I2V-A14B (two experts) "
            "or Wan2.2-TI2V-5B. Any other image-to-video node can take its place.",
            search_aliases=[
                "image to video",
                "photo to video",
                "animate",
                "long video",
                "loop",
                "wan2.2 i2v",
                "moe sampler",
                "swifti2v",
            ],
            inputs=[
                io.Model.Input(
                    "model_high_noise",
                    tooltip="The high-noise expert of Wan2.2-I2V-A14B, or a single model such as "
                    "Wan2.2-TI2V-5B. With another loader than SwiftI2V's, set the shift to 5 with "
                    "ModelSamplingSD3.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of Stage I: Wan2.1 (16 channels) for A14B, Wan2.2 (48) for TI2V.",
                ),
                io.Image.Input("image", tooltip=shared_inputs.PHOTOS),
                io.Model.Input(
                    "model_low_noise",
                    optional=True,
                    tooltip="The low-noise expert, which takes over below the boundary. Unconnected: the "
                    "first model does all steps.",
                ),
                *shared_inputs.prompts("the clip"),
                *shared_inputs.size(640, 352, 16, shared_inputs.SIZE_RULE),
                shared_inputs.frames("the clip"),
                shared_inputs.seed("the motion"),
                shared_inputs.steps(),
                shared_inputs.cfg(),
                shared_inputs.sampler_name(sampler_names()),
                shared_inputs.fit(),
                io.Float.Input(
                    "boundary",
                    default=EXPERT_BOUNDARY,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    optional=True,
                    advanced=True,
                    tooltip="Noise level (sigma) below which the low-noise expert takes over. Default "
                    "0.9, what Wan2.2-I2V-A14B was trained with. Ignored with one model.",
                ),
                shared_inputs.timesteps(),
                *_reshift_inputs(),
                *_chunk_inputs(),
                _motion_strength_input(),
                *_joining_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    tooltip="The motion clip, for SwiftI2V Anchor Encode; clip after clip for a batch. "
                    "With continue_from, only the frames that come after the given clip.",
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The same clip as a latent of the Stage I VAE. With continue_from, it "
                    "begins with the known frames.",
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        model_high_noise: Any,
        vae: Any,
        image: torch.Tensor,
        width: int,
        height: int,
        frames: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        fit: Fit,
        model_low_noise: Any = None,
        positive: Any = None,
        negative: Any = None,
        boundary: float = EXPERT_BOUNDARY,
        timesteps: str = "",
        reshift_steps: int = 0,
        reshift_scale: float = 1.5,
        reshift_match_snr: bool = False,
        chunk_frames: int = 0,
        overlap_frames: int = 8,
        motion_strength: float = 1.0,
        continue_from: torch.Tensor | None = None,
        loop: bool = False,
    ) -> io.NodeOutput:
        models = _experts(model_high_noise, model_low_noise)
        channels = _read_latent_channels(models)
        check_image(image, "The photo")
        check_vae(vae, channels)
        multiple = SIZE_MULTIPLES[channels]
        check_size(width, height, multiple)
        chunks = plan_chunks(frames, chunk_frames, overlap_frames)
        check_frames_fit_memory(len(image), frames, width, height)
        start = _read_start(channels, motion_strength, loop)
        known = _read_known_frames(image, continue_from, frames, overlap_frames)
        prompts = read_prompts(model_high_noise, positive, negative)
        sigmas = schedule(model_high_noise, steps, timesteps)
        sizes = [SizeSteps(width, height, sigmas)]
        if reshift_steps:
            large = large_size(width, height, reshift_scale, multiple)
            for given in (image, known[0]):
                check_framed_fits_memory(given, width / height, fit)
            first, rest = reshift_size_steps(sigmas, reshift_steps, large, (width, height))
            sizes = [first, match_snr(first, rest) if reshift_match_snr else rest]

        # Chunks are equally long, and all continue from what is encoded for the first one.
        encoded = pixel_frame_count(len(chunks[0].frames))
        expert_steps = plan_expert_steps(sizes, boundary if len(models) == 2 else 0.0)
        sampler = make_sampler(sampler_name)
        clean = 1 if continue_from is None else overlap_frames // FRAMES_PER_LATENT
        sampling = MotionSampling(models, prompts, cfg, sampler, start, chunks, clean)
        need = _memory_need(models[0], channels, sizes, encoded, overlap_frames)
        with explain_out_of_memory(need, models[0].load_device):
            clips = [
                _encode_clip(
                    vae,
                    channels,
                    _sized(begin, sizes, fit),
                    _sized(photo, sizes, fit) if loop else [None] * len(sizes),
                    encoded,
                )
                for begin, photo in zip(known, image.split(1), strict=True)
            ]
            latent = sampling.run(expert_steps, clips, seed)
            made = decode_images(vae, latent)
            new = made if continue_from is None else made[len(known[0]) :]
            return io.NodeOutput(new, {"samples": latent})


def _memory_need(
    model: Any, channels: int, sizes: list[SizeSteps], frames: int, overlap_frames: int
) -> MemoryNeed:
    """Return the memory that a sampling of ``frames`` frames takes, and settings that take less."""
    multiple = SIZE_MULTIPLES[channels]
    first, clip = sizes[0], sizes[-1]  # the larger one comes first

    def needed(count: int, width: int, height: int) -> float:
        cell = multiple // 2  # Wan networks patch two by two latent cells
        return sampling_bytes(
            model, (1, channels, latent_frame_count(count), height // cell, width // cell)
        )

    def smaller() -> Iterator[Advice]:
        if len(sizes) > 1:
            yield "set reshift_steps to 0", needed(frames, clip.width, clip.height)
        else:
            least = overlap_frames + 1
            yield from fewer_frames(
                "chunk_frames", frames, lambda count: needed(count, clip.width, clip.height), least
            )
        yield from smaller_sizes(clip.width, clip.height, partial(needed, frames), multiple)

    what = f"A sampling of {frames} frames at {first.width}x{first.height}"
    return MemoryNeed(what, needed(frames, first.width, first.height), smaller)


def _experts(high: Any, low: Any) -> list[Any]:
    return [high] if low is None or low is high else [high, low]


def _read_latent_channels(experts: list[Any]) -> int:
    """Return the latent channels of the experts; raise ValueError if they differ."""
    names = ("model_high_noise", "model_low_noise")
    found = [read_stage_one_latents(model, name) for model, name in zip(experts, names, strict=False)]
    if len(set(found)) > 1:
        raise ValueError(
            f"model_high_noise makes {found[0]}-channel latents and model_low_noise {found[1]}, but "
            "both experts must be of one kind; load the pair of Wan2.2-I2V-A14B."
        )
    return found[0]


def _read_start(channels: int, motion_strength: float, loop: bool) -> Callable[[torch.Tensor, int], Start]:
    """Return what makes the starts of a model; raise ValueError if it cannot do what is asked."""
    if channels == 16:
        return partial(start_a14b, motion_strength=motion_strength, loop=loop)
    if motion_strength != 1:
        raise ValueError(
            f"motion_strength is {motion_strength:g}, but only Wan2.2-I2V-A14B is given gray frames that "
            "it can amplify; the nearest valid value for Wan2.2-TI2V-5B is 1."
        )
    if loop:
        raise ValueError(
            "loop is on, but Wan2.2-TI2V-5B takes the photo as first frame only; turn it off, or load "
            "Wan2.2-I2V-A14B."
        )
    return start_ti2v


def _read_known_frames(
    image: torch.Tensor, continue_from: Any, frames: int, overlap_frames: int
) -> list[torch.Tensor]:
    """Return what every clip starts from: its photo, or the last frames of a clip to continue."""
    if continue_from is None:
        return list(image.split(1))
    check_image(continue_from, "continue_from")
    if len(image) > 1:
        raise ValueError(
            f"The photo is a batch of {len(image)} images, but continue_from is one clip; pick one with "
            "ImageFromBatch."
        )
    return [last_frames(continue_from, frames, overlap_frames)]


def _sized(frames: torch.Tensor, sizes: list[SizeSteps], fit: Fit) -> list[torch.Tensor]:
    """Return frames at every size, framed as in the last one, the clip itself."""
    *before, clip = sizes
    return [
        *(large_photo(frames, size, clip, fit) for size in before),
        fit_frames(frames, clip.width, clip.height, fit),
    ]


def _encode_clip(
    vae: Any, channels: int, begins: list[torch.Tensor], lasts: list[Any], frames: int
) -> list[torch.Tensor]:
    """Return the latents that a clip starts from, one for every size."""
    if channels == 48:
        return [encode_ti2v(vae, begin, frames) for begin in begins]
    return [encode_a14b(vae, begin, frames, last) for begin, last in zip(begins, lasts, strict=True)]
