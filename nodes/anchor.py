"""Anchor encoding and the hybrid reference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from comfy_api.latest import io

from ..swifti2v_core.geometry import check_size, latent_frame_count
from ..swifti2v_core.pixels import after
from ..swifti2v_core.reference import ReferenceSettings, reference_chunks
from . import autoencoder, checks, host, widgets


class AnchorEncode(io.ComfyNode):
    """Put photo and motion clip together and encode them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_AnchorEncode",
            display_name="SwiftI2V Anchor Encode (Hybrid Reference)",
            category="SwiftI2V",
            description="Enlarges a motion clip of any origin to the final size, puts the photo in as "
            "frame 0 and encodes the result: the reference that Stage II follows.",
            search_aliases=["z_ref", "hybrid reference", "swifti2v"],
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
                    "clip each, one behind the other, as Stage I gives them.",
                ),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE of Stage II: the Wan2.2 VAE with 48 channels.",
                ),
                *widgets.size(2560, 1408, 32, "Must be a multiple of 32; more pixels cost more time."),
                widgets.frames("the finished video"),
                widgets.fit(),
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
                    tooltip="Gives the motion clip the photo's brightness and color, measured on frame 0 "
                    "and applied to all frames. Default off; turn it on when the clip has a cast.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="z_ref",
                    tooltip="The reference latent; its latent frame 0 is the photo. Save it with "
                    "Save Latent to try several Stage II settings.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        motion: torch.Tensor,
        vae: object,
        width: int,
        height: int,
        frames: int,
        fit: str,
        upscale: str,
        color_match: bool,
    ) -> io.NodeOutput:
        checks.image(image, "The photo")
        motions = checks.motion_of(motion, len(image)).split(len(motion) // len(image))
        checks.vae(vae, channels=48)
        check_size(width, height)
        latent_frame_count(frames)
        if len(motions[0]) != frames:
            host.logger.warning(
                "The motion clip has %d frames and %d are asked for: frames are repeated or skipped "
                "to cover the same time.",
                len(motions[0]),
                frames,
            )
        settings = ReferenceSettings(width, height, frames, fit, upscale)

        def chunks(clip: int, device: torch.device) -> Iterator[torch.Tensor]:
            report = after(host.frame_progress(frames * len(image)), frames * clip)
            photo = image[clip : clip + 1].to(device)
            return reference_chunks(photo, motions[clip], settings, color_match, report)

        references = [
            autoencoder.encode_reference(vae, frames, height, width, partial(chunks, clip))
            for clip in range(len(image))
        ]
        return io.NodeOutput({"samples": torch.cat(references)})
