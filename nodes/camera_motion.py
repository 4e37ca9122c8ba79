"""Stage I without a model: a camera move over the photo."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..swifti2v_core.geometry import check_size, latent_frame_count
from ..swifti2v_core.images import Fit
from ..swifti2v_core.progress import counting_from
from ..swifti2v_core.seeds import clip_seed
from ..swifti2v_core.stage_one import camera
from . import shared_inputs
from .checks.images import check_image
from .checks.numbers import check_frames_fit_memory
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.progress import frame_progress
from .pipeline.memory_advice import explain_out_of_memory, image_need, warn_if_large
from .shared_inputs import CATEGORY


@refused_when_queued((check_size, ("width", "height")), (latent_frame_count, ("frames",)))
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
            search_aliases=[
                "photo to video",
                "animate",
                "ken burns",
                "pan zoom",
                "camera move",
                "swifti2v",
            ],
            inputs=[
                io.Image.Input(
                    "image", tooltip=f"{shared_inputs.PHOTOS} The larger it is, the sharper a zoom stays."
                ),
                *shared_inputs.size(640, 352, 32, shared_inputs.SIZE_RULE),
                shared_inputs.frames("the clip"),
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
                shared_inputs.seed("the path of the sway"),
                shared_inputs.fit(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="frames",
                    tooltip="The motion clip, for SwiftI2V Anchor Encode; clip after clip for a batch.",
                )
            ],
        )

    @classmethod
    @checked_widgets
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
        easing: camera.Easing,
        seed: int,
        fit: Fit,
    ) -> io.NodeOutput:
        check_image(image, "The photo")
        check_frames_fit_memory(len(image), frames, width, height)
        move = camera.CameraMove(pan_x, pan_y, zoom, rotate, tilt, sway, easing, seed)
        need = image_need("camera move", len(image), width, height, frames)
        warn_if_large(need)
        report = frame_progress(frames * len(image))

        with explain_out_of_memory(need, image.device):
            clips = [
                camera.camera_motion(
                    photo,
                    width,
                    height,
                    frames,
                    replace(move, seed=clip_seed(seed, index)),
                    fit,
                    counting_from(report, index * frames),
                )
                for index, photo in enumerate(image.split(1))
            ]
            return io.NodeOutput(torch.cat(clips))
