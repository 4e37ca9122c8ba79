"""Anchor encoding: photo and motion clip become the hybrid reference."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..swifti2v_core.geometry import check_size, latent_frame_count, latent_frame_of
from ..swifti2v_core.images import Fit, Kernel
from ..swifti2v_core.progress import counting_from
from ..swifti2v_core.reference.hybrid import (
    KEYFRAME_CLIP_FRAMES,
    Frames,
    ReferenceSettings,
    keyframe_chunks,
    reference_chunks,
)
from ..swifti2v_core.reference.keyframes import read_frame_numbers
from . import shared_inputs
from .checks.images import (
    check_clip_fits_memory,
    check_framed_fits_memory,
    check_image,
    check_motion,
    check_times_have_keyframes,
    check_video,
    read_keyframe_numbers,
)
from .checks.latents import KEYFRAME_TIMES
from .checks.models import check_vae
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.progress import frame_progress
from .comfyui.vae import device_of
from .comfyui.video import is_video
from .pipeline.encode import encode_need, encode_reference
from .pipeline.memory_advice import explain_out_of_memory
from .pipeline.motion_video import opened_motion
from .shared_inputs import CATEGORY

logger = logging.getLogger("SwiftI2V")


@refused_when_queued(
    (check_size, ("width", "height")),
    (latent_frame_count, ("frames",)),
    (read_frame_numbers, ("keyframe_times", "frames")),
    (check_times_have_keyframes, ("keyframe_times", "keyframes")),
)
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
                io.MultiType.Input(
                    "motion",
                    [io.Image, io.Video],
                    tooltip="The motion clip: frames from SwiftI2V Motion Sampler, SwiftI2V Camera Motion "
                    "or any other image-to-video node, or a VIDEO from Load Video, of which only a few "
                    "frames are in memory at a time. Any size; another number of frames than asked is "
                    "spread over the same time. For several photos frames of one clip each, one after the "
                    "other.",
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
                io.Float.Output(
                    display_name="fps",
                    tooltip="Frames per second at which the result is as fast as the VIDEO on motion, for "
                    "Decode to Video; nothing for frames.",
                ),
                io.Audio.Output(
                    display_name="audio",
                    tooltip="Sound of the VIDEO on motion, for Decode to Video; nothing for frames and "
                    "silent videos.",
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        image: torch.Tensor,
        motion: Any,
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
        check_vae(vae, channels=48)
        check_clip_fits_memory(vae, frames, width, height)
        numbers = read_keyframe_numbers(keyframes, keyframe_times, frames, len(image))
        settings = ReferenceSettings(width, height, frames, fit, upscale)
        photos = {} if keyframes is None else dict(zip(numbers, keyframes.split(1), strict=True))
        with opened_motion(motion) as opened:
            clips = _read_clips(motion, opened.frames, len(image))
            for pictures in (image,) if keyframes is None else (image, keyframes):
                check_framed_fits_memory(pictures, _aspect(clips[0]), fit)
            if len(clips[0]) != frames:
                logger.warning(
                    "The motion clip has %d frames and %d are asked for: frames are repeated or skipped "
                    "to cover the same time.",
                    len(clips[0]),
                    frames,
                )
            with explain_out_of_memory(encode_need(vae, frames, height, width), device_of(vae)):
                latent = _encode_clips(vae, image, clips, settings, color_match, photos)
                stills = [
                    _encode_keyframe(vae, photo, _aspect(clips[0]), settings) for photo in photos.values()
                ]
            rate, audio = opened.rate_of(frames), opened.audio
        return io.NodeOutput({"samples": latent}, _keyframe_latent(stills, numbers), rate, audio)


def _read_clips(motion: Any, frames: Any, photos: int) -> Sequence[Frames]:
    """Return the motion clip of every photo."""
    if is_video(motion):
        check_video(frames, photos)
        return [frames]
    check_motion(frames, photos)
    clips: Sequence[torch.Tensor] = frames.split(len(frames) // photos)
    return clips


def _aspect(frames: Frames) -> float:
    return frames.shape[2] / frames.shape[1]


def _encode_clips(
    vae: object,
    image: torch.Tensor,
    clips: Sequence[Frames],
    settings: ReferenceSettings,
    color_match: bool,
    keyframes: dict[int, torch.Tensor],
) -> torch.Tensor:
    """Return the references ``[B, 48, T, h, w]`` of photos and their motion clips."""
    frames = settings.frames

    def chunks(clip: int, device: torch.device) -> Iterator[torch.Tensor]:
        report = counting_from(frame_progress(frames * len(image)), frames * clip)
        photo = image[clip : clip + 1].to(device)
        return reference_chunks(photo, clips[clip], settings, color_match, report, keyframes)

    return torch.cat([
        encode_reference(vae, frames, settings.height, settings.width, partial(chunks, clip))
        for clip in range(len(image))
    ])  # fmt: skip


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
