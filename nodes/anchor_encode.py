"""Anchor encoding: photo and motion clip become the hybrid reference."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core.geometry import check_size, latent_frame_count, latent_frame_of
from ..swifti2v_core.images import Fit, Kernel
from ..swifti2v_core.progress import counting_from
from ..swifti2v_core.reference.hybrid import (
    KEYFRAME_CLIP_FRAMES,
    ReferenceSettings,
    keyframe_chunks,
    reference_chunks,
)
from . import shared_inputs
from .checks.images import (
    check_clip_fits_memory,
    check_framed_fits_memory,
    check_image,
    check_motion,
    read_keyframe_numbers,
)
from .checks.latents import KEYFRAME_TIMES
from .checks.models import check_vae
from .checks.widgets import checked_widgets
from .comfyui.progress import frame_progress
from .comfyui.vae import device_of
from .pipeline.encode import encode_need, encode_reference
from .pipeline.memory_advice import explain_out_of_memory
from .shared_inputs import CATEGORY

logger = logging.getLogger("SwiftI2V")


class AnchorEncode(io.ComfyNode):
    """Combine photo and motion clip and encode them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_AnchorEncode",
            display_name="SwiftI2V Anchor Encode (Hybrid Reference)",
            category=CATEGORY,
            description="Enlarges a motion clip of any origin to the final size, puts the photo in as "
            "frame 0 and encodes the result: the reference that Stage II follows.",
            search_aliases=["z_ref", "hybrid reference", "upscale video", "swifti2v"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The photo, one image at full size. It becomes frame 0 and the anchor that "
                    "every segment looks at. A batch is several photos, not the frames of a video: each "
                    "gets a clip of its own.",
                ),
                io.Image.Input(
                    "motion",
                    tooltip="The motion clip as frames: from SwiftI2V Motion Sampler, SwiftI2V Camera "
                    "Motion, a loaded video or any other image-to-video node. Any size; another "
                    "number of frames than asked is spread over the same time. For several photos one "
                    "clip each, one after the other, as Stage I gives them.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of Stage II: the Wan2.2 VAE with 48 channels.",
                ),
                *shared_inputs.size(
                    2560, 1408, 32, "Must be a multiple of 32; more pixels cost more time."
                ),
                shared_inputs.frames("the finished video"),
                shared_inputs.fit(),
                io.Combo.Input(
                    "upscale",
                    options=["bicubic", "lanczos"],
                    default="bicubic",
                    tooltip="Kernel that enlarges the motion. bicubic (default) is what Stage II weights "
                    "are trained on; lanczos is a little crisper and rings more at hard edges.",
                ),
                io.Boolean.Input(
                    "color_match",
                    default=False,
                    tooltip="Gives the motion clip the photo's brightness, color and contrast, by the same "
                    "change in all frames. Default off; turn it on when the clip has a cast. Fades stay.",
                ),
                io.Image.Input(
                    "keyframes",
                    optional=True,
                    tooltip="More photos that the video passes through, as a batch: the last frame of a "
                    "first/last-frame video, for example. Unconnected: the photo alone. The motion should "
                    "go there, too; connect the output of the same name to the segment sampler.",
                ),
                io.String.Input(
                    "keyframe_times",
                    default="",
                    optional=True,
                    tooltip="Frame number of each keyframe, such as 40, 80: ascending, from 1, at most one "
                    "every 4 frames. Default empty: spread evenly, the last one on the last frame.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="z_ref",
                    tooltip="The reference latent; its latent frame 0 is the photo. Save it with "
                    "Save Latent to try several Stage II settings.",
                ),
                io.Latent.Output(
                    display_name="keyframes",
                    tooltip="The keyframes and their times, for a segment sampler; nothing without "
                    "keyframes.",
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        image: torch.Tensor,
        motion: torch.Tensor,
        vae: object,
        width: int,
        height: int,
        frames: int,
        fit: Fit,
        upscale: Kernel,
        color_match: bool,
        keyframes: torch.Tensor | None = None,
        keyframe_times: str = "",
    ) -> io.NodeOutput:
        check_image(image, "The photo")
        check_motion(motion, len(image))
        check_vae(vae, channels=48)
        check_size(width, height)
        latent_frame_count(frames)
        check_clip_fits_memory(vae, frames, width, height)
        numbers = read_keyframe_numbers(keyframes, keyframe_times, frames, len(image))
        aspect = motion.shape[2] / motion.shape[1]
        for pictures in (image,) if keyframes is None else (image, keyframes):
            check_framed_fits_memory(pictures, aspect, fit)
        motions = motion.split(len(motion) // len(image))
        if len(motions[0]) != frames:
            logger.warning(
                "The motion clip has %d frames and %d are asked for: frames are repeated or skipped "
                "to cover the same time.",
                len(motions[0]),
                frames,
            )
        settings = ReferenceSettings(width, height, frames, fit, upscale)
        photos = {} if keyframes is None else dict(zip(numbers, keyframes.split(1), strict=True))

        def chunks(clip: int, device: torch.device) -> Iterator[torch.Tensor]:
            report = counting_from(frame_progress(frames * len(image)), frames * clip)
            photo = image[clip : clip + 1].to(device)
            return reference_chunks(photo, motions[clip], settings, color_match, report, photos)

        with explain_out_of_memory(encode_need(vae, frames, height, width), device_of(vae)):
            references = [
                encode_reference(vae, frames, height, width, partial(chunks, clip))
                for clip in range(len(image))
            ]
            stills = [_encode_keyframe(vae, photo, aspect, settings) for photo in photos.values()]
        return io.NodeOutput({"samples": torch.cat(references)}, _keyframe_latent(stills, numbers))


def _encode_keyframe(
    vae: object, photo: torch.Tensor, motion_aspect: float, settings: ReferenceSettings
) -> torch.Tensor:
    """Return the latent frame ``[1, 48, 1, h, w]`` of a video that shows ``photo`` at that time."""

    def chunks(device: torch.device) -> Iterator[torch.Tensor]:
        return keyframe_chunks(photo.to(device), motion_aspect, settings)

    clip = encode_reference(vae, KEYFRAME_CLIP_FRAMES, settings.height, settings.width, chunks)
    return clip[:, :, 1:]


def _keyframe_latent(stills: list[torch.Tensor], numbers: list[int]) -> dict[str, Any] | None:
    """Return the LATENT that carries keyframes to a segment sampler, None without any."""
    if not stills:
        return None
    times = [latent_frame_of(number) for number in numbers]
    return {"samples": torch.cat(stills, dim=2), KEYFRAME_TIMES: times}
