"""Stage I: a small motion clip, by a model or by a camera move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core import camera
from ..swifti2v_core.geometry import check_size, latent_frame_count
from ..swifti2v_core.pixels import after
from ..swifti2v_core.reshift import (
    Leg,
    Part,
    large_photo,
    large_size,
    match_snr,
    plan_parts,
    reshift_legs,
    shrink,
)
from ..swifti2v_core.resize import fit_frames
from ..swifti2v_core.seeds import clip_seed
from ..swifti2v_core.segments import clean_mask
from ..swifti2v_core.sigmas import EXPERT_BOUNDARY
from ..swifti2v_core.stage_one import keep_clean, photo_first, photo_then_gray
from . import autoencoder, checks, host, widgets

CATEGORY = "SwiftI2V"
SIZE_RULE = (
    "Must be a multiple of 32 (16 for Wan2.2-I2V-A14B). A quarter of the final size keeps the "
    "paper's proportions."
)


@dataclass(frozen=True)
class Start:
    """What a Stage I sampling starts from.

    Attributes
    ----------
    latent
        ``[1, C, T, h, w]``.
    mask
        Noise mask, or None where no frame is clean.
    conditions
        Entries added to the conditioning.
    """

    latent: torch.Tensor
    mask: torch.Tensor | None
    conditions: dict[str, Any]


def _start_a14b(vae: Any, photo: torch.Tensor, frames: int) -> Start:
    """Photo as concatenated latent and mask (Wan2.2-I2V-A14B)."""
    encoded = autoencoder.encode(vae, photo_then_gray(photo, frames))
    mask = clean_mask(encoded.shape[2], 1, *encoded.shape[3:])
    return Start(torch.zeros_like(encoded), None, {"concat_latent_image": encoded, "concat_mask": mask})


def _start_ti2v(vae: Any, photo: torch.Tensor, frames: int) -> Start:
    """Photo as clean latent frame 0 (Wan2.2-TI2V)."""
    latent = photo_first(autoencoder.encode(vae, photo), latent_frame_count(frames))
    return Start(latent, clean_mask(latent.shape[2], 1, *latent.shape[3:]), {})


STARTS = {16: _start_a14b, 48: _start_ti2v}
"""By latent channels of the model."""


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
            "are trained to walk their few steps without a break, and one step is already a quarter.",
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
            search_aliases=["image to video", "wan2.2 i2v", "moe sampler", "swifti2v"],
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
                io.Image.Input("image", tooltip=widgets.PHOTOS),
                io.Model.Input(
                    "model_low_noise",
                    optional=True,
                    tooltip="The low-noise expert, which takes over below the boundary. Unconnected: the "
                    "first model does all steps.",
                ),
                *widgets.prompts("the clip"),
                *widgets.size(640, 352, 16, SIZE_RULE),
                widgets.frames("the clip"),
                widgets.seed("the motion"),
                widgets.steps(),
                widgets.cfg(),
                widgets.sampler_name(),
                widgets.fit(),
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
                widgets.timesteps(),
                *_reshift_inputs(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    tooltip="The motion clip, for SwiftI2V Anchor Encode; clip after clip for a batch.",
                ),
                io.Latent.Output(
                    display_name="latent", tooltip="The same clip as a latent of the Stage I VAE."
                ),
            ],
        )

    @classmethod
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
        fit: str,
        model_low_noise: Any = None,
        positive: Any = None,
        negative: Any = None,
        boundary: float = EXPERT_BOUNDARY,
        timesteps: str = "",
        reshift_steps: int = 0,
        reshift_scale: float = 1.5,
        reshift_match_snr: bool = False,
    ) -> io.NodeOutput:
        models = _experts(model_high_noise, model_low_noise)
        channels = _check_experts(models)
        checks.image(image, "The photo")
        checks.vae(vae, channels)
        multiple = 16 if channels == 16 else 32
        check_size(width, height, multiple)
        latent_frame_count(frames)
        prompts = checks.prompts(model_high_noise, positive, negative)
        sigmas = checks.from_pure_noise(widgets.schedule(model_high_noise, steps, timesteps))
        legs = [Leg(width, height, sigmas)]
        if reshift_steps:
            large = large_size(width, height, reshift_scale, multiple)
            first, rest = reshift_legs(sigmas, reshift_steps, large, (width, height))
            legs = [first, match_snr(first, rest) if reshift_match_snr else rest]

        clips = [
            [STARTS[channels](vae, sized, frames) for sized in _photos(photo, legs, fit)]
            for photo in image.split(1)
        ]
        parts = plan_parts(legs, boundary if len(models) == 2 else 0.0)
        sampling = MotionSampling(models, prompts, cfg, host.sampler_object(sampler_name))
        latent = sampling.run(parts, clips, seed)
        return io.NodeOutput(autoencoder.decode_images(vae, latent), {"samples": latent})


def _experts(high: Any, low: Any) -> list[Any]:
    return [high] if low is None or low is high else [high, low]


def _check_experts(experts: list[Any]) -> int:
    names = ("model_high_noise", "model_low_noise")
    found = [checks.stage_one_model(model, name) for model, name in zip(experts, names, strict=False)]
    if len(set(found)) > 1:
        raise ValueError(
            f"model_high_noise makes {found[0]}-channel latents and model_low_noise {found[1]}, but "
            "both experts must be of one kind; load the pair of Wan2.2-I2V-A14B."
        )
    return found[0]


def _photos(photo: torch.Tensor, legs: list[Leg], fit: str) -> list[torch.Tensor]:
    """Return the photo at the size of every leg, all framed as in the last one, the clip itself."""
    *before, clip = legs
    return [
        *(large_photo(photo, leg, clip, fit) for leg in before),
        fit_frames(photo, clip.width, clip.height, fit),
    ]


@dataclass(frozen=True)
class MotionSampling:
    """One run of Stage I over ComfyUI's own sampling.

    Attributes
    ----------
    models
        The experts, or the only model.
    prompts
        Positive and negative CONDITIONING.
    cfg
        Guidance.
    sampler
        SAMPLER of every part.
    """

    models: list[Any]
    prompts: tuple[Any, Any]
    cfg: float
    sampler: Any

    def run(self, parts: list[Part], clips: list[list[Start]], seed: int) -> torch.Tensor:
        """Sample part after part, each for every clip, and return the latent of all clips.

        One clip at a time, so that it is what it would be alone and memory does not grow; all clips
        of a part before the next one, so that every expert is loaded once.

        Parameters
        ----------
        parts
            In order.
        clips
            For every clip one start for every leg.
        seed
            Chooses the noise of every leg; further clips take the next seeds.
        """
        latents, done = [starts[0].latent for starts in clips], 0
        steps = sum(len(part.sigmas) - 1 for part in parts)
        with host.SamplingProgress(self.models[0], steps * len(clips)) as progress:
            for part, (index, starts) in product(parts, enumerate(clips)):
                callback = progress.callback(done, first_frame=1)
                latents[index] = self._sample(
                    part, starts[part.leg], latents[index], clip_seed(seed, index), callback
                )
                done += len(part.sigmas) - 1
                progress.finish(done)
        return torch.cat(latents)

    def _sample(
        self, part: Part, start: Start, latent: torch.Tensor, seed: int, callback: Callable[..., None]
    ) -> torch.Tensor:
        """Sample one part, from the latent that the part before it left."""
        if latent.shape != start.latent.shape:
            latent = keep_clean(shrink(latent, *start.latent.shape[-2:]), start.latent, start.mask)
        noise = torch.zeros_like(latent)
        if part.adds_noise:
            # ComfyUI adds it as (1 - s) * latent + s * noise, which is also what reshifting asks for.
            noise = host.SeededNoise(seed).generate_noise({"samples": latent})
        positive, negative = (host.extend_conditioning(p, start.conditions) for p in self.prompts)
        result = host.sample(
            host.motion_guider(self.models[part.expert], positive, negative, self.cfg),
            noise,
            latent,
            self.sampler,
            part.sigmas,
            mask=start.mask,
            callback=callback,
            seed=seed,
        )
        return keep_clean(result, start.latent, start.mask)


class CameraMotion(io.ComfyNode):
    """Make the small motion clip with a camera move, without a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def amount(
            name: str, default: float, low: float, high: float, step: float, tooltip: str
        ) -> io.Float.Input:
            return io.Float.Input(
                name, default=default, min=low, max=high, step=step, round=0.001, tooltip=tooltip
            )

        return io.Schema(
            node_id="SwiftI2V_CameraMotion",
            display_name="SwiftI2V Camera Motion",
            category=CATEGORY,
            description="Moves a camera over the photo: a Stage I that needs no model and invents "
            "nothing. Amounts are relative to the frame, so any size shows the same move.",
            search_aliases=["ken burns", "pan zoom", "camera move", "swifti2v"],
            inputs=[
                io.Image.Input(
                    "image", tooltip=f"{widgets.PHOTOS} The larger it is, the sharper a zoom stays."
                ),
                *widgets.size(640, 352, 32, SIZE_RULE),
                widgets.frames("the clip"),
                amount(
                    "pan_x",
                    0.05,
                    -1.0,
                    1.0,
                    0.01,
                    "How far the camera moves to the right, in frame widths; negative moves left. "
                    "Default 0.05. Beyond the photo's border the photo is mirrored.",
                ),
                amount(
                    "pan_y",
                    0.0,
                    -1.0,
                    1.0,
                    0.01,
                    "How far the camera moves down, in frame heights; negative moves up. Default 0.",
                ),
                amount(
                    "zoom",
                    1.15,
                    0.25,
                    4.0,
                    0.01,
                    "Final magnification: above 1 moves in, below 1 moves out and mirrors the borders. "
                    "Default 1.15.",
                ),
                amount(
                    "rotate",
                    0.0,
                    -180.0,
                    180.0,
                    0.5,
                    "Roll of the picture in degrees, clockwise. Default 0.",
                ),
                amount(
                    "tilt",
                    0.0,
                    -30.0,
                    30.0,
                    0.5,
                    "Perspective in degrees, as if the camera looked up (positive) or down. Default 0.",
                ),
                amount(
                    "sway",
                    0.0,
                    0.0,
                    0.2,
                    0.005,
                    "Hand-held sway in frame heights. Default 0; 0.01 is gentle.",
                ),
                io.Combo.Input(
                    "easing",
                    options=["smooth", "linear"],
                    default="smooth",
                    tooltip="smooth (default) starts and stops gently; linear moves evenly, which suits "
                    "clips that are joined.",
                ),
                widgets.seed("the path of the sway"),
                widgets.fit(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    tooltip="The motion clip, for SwiftI2V Anchor Encode; clip after clip for a batch.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        width: int,
        height: int,
        frames: int,
        pan_x: float,
        pan_y: float,
        zoom: float,
        rotate: float,
        tilt: float,
        sway: float,
        easing: str,
        seed: int,
        fit: str,
    ) -> io.NodeOutput:
        checks.image(image, "The photo")
        check_size(width, height)
        latent_frame_count(frames)
        move = camera.CameraMove(pan_x, pan_y, zoom, rotate, tilt, sway, easing, seed)
        report = host.frame_progress(frames * len(image))
        clips = [
            camera.camera_motion(
                photo,
                width,
                height,
                frames,
                replace(move, seed=clip_seed(seed, index)),
                fit,
                after(report, index * frames),
            )
            for index, photo in enumerate(image.split(1))
        ]
        return io.NodeOutput(torch.cat(clips))
