"""Stage I: a small motion clip, by a model or by a camera move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core import camera
from ..swifti2v_core.geometry import check_size, latent_frame_count
from ..swifti2v_core.resize import fit_frames
from ..swifti2v_core.segments import clean_mask
from ..swifti2v_core.sigmas import EXPERT_BOUNDARY, split_sigmas
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
                io.Image.Input("image", tooltip="The photo, one image of any size."),
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
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames", tooltip="The motion clip, for SwiftI2V Anchor Encode."
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
    ) -> io.NodeOutput:
        experts = _experts(model_high_noise, model_low_noise)
        channels = _check_experts(experts)
        checks.photo(image)
        checks.vae(vae, channels)
        check_size(width, height, multiple=16 if channels == 16 else 32)
        latent_frame_count(frames)
        prompts = checks.prompts(model_high_noise, positive, negative)
        sigmas = checks.from_pure_noise(widgets.schedule(model_high_noise, steps, timesteps))

        start = STARTS[channels](vae, fit_frames(image, width, height, fit), frames)
        parts = split_sigmas(sigmas, boundary) if len(experts) == 2 else (sigmas,)
        latent = _sample(experts, parts, start, prompts, cfg, sampler_name, seed)
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


def _sample(
    experts: list[Any],
    parts: tuple[torch.Tensor, ...],
    start: Start,
    prompts: tuple[Any, Any],
    cfg: float,
    sampler_name: str,
    seed: int,
) -> torch.Tensor:
    """Sample with one expert after the other, handing over the noisy latent between them."""
    latent = start.latent
    noise = host.SeededNoise(seed).generate_noise({"samples": latent})
    positive, negative = (host.extend_conditioning(p, start.conditions) for p in prompts)
    done = 0
    with host.SamplingProgress(experts[0], sum(len(part) - 1 for part in parts)) as progress:
        for model, sigmas in zip(experts, parts, strict=True):
            if len(sigmas) < 2:
                continue
            result = host.sample(
                host.motion_guider(model, positive, negative, cfg),
                noise,
                latent,
                host.sampler_object(sampler_name),
                sigmas,
                mask=start.mask,
                callback=progress.callback(done, first_frame=1),
                seed=seed,
            )
            latent = keep_clean(result, start.latent, start.mask)
            # The second expert goes on from the noise that is left; nothing new is added.
            noise = torch.zeros_like(noise)
            done += len(sigmas) - 1
            progress.finish(done)
    return latent


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
                    "image",
                    tooltip="The photo, one image; the larger it is, the sharper a zoom stays.",
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
                    display_name="frames", tooltip="The motion clip, for SwiftI2V Anchor Encode."
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
        checks.photo(image)
        check_size(width, height)
        latent_frame_count(frames)
        move = camera.CameraMove(pan_x, pan_y, zoom, rotate, tilt, sway, easing, seed)
        report = host.frame_progress(frames)
        return io.NodeOutput(camera.camera_motion(image, width, height, frames, move, fit, report))
