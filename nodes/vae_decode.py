"""From latent to IMAGE or to a video file."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from itertools import chain

from comfy_api.latest import InputImpl, io, ui

from ..swifti2v_core.geometry import pixel_frame_count
from .checks.file_names import check_filename_prefix
from .checks.latents import read_decodable_images, read_one_clip
from .checks.widgets import checked_widgets
from .comfyui.output_files import reserved_output_file, workflow_metadata
from .comfyui.progress import check_interrupted, frame_progress
from .comfyui.vae import device_of, pixel_size_of
from .pipeline.decode import decode_bytes, decode_images
from .pipeline.memory_advice import MemoryNeed, explain_out_of_memory, image_need, warn_if_large
from .pipeline.output_name import fill_placeholders
from .pipeline.video_file import CODECS, VideoFile, frame_rate
from .shared_inputs import CATEGORY


class TiledVAEDecode(io.ComfyNode):
    """Decode a latent to frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_TiledVAEDecode",
            display_name="SwiftI2V Tiled VAE Decode",
            category=CATEGORY,
            description="Decodes a video latent to frames for other nodes. A 2560x1408 frame takes "
            "43 MB of RAM; to save a video, Decode to Video needs far less.",
            search_aliases=["vae decode video", "swifti2v"],
            inputs=[
                io.Latent.Input("samples", tooltip="The latent to decode, from a segment sampler."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE that made the latent: Wan2.2 (48 channels) for Stage II.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images", tooltip="All frames, clip after clip.")],
        )

    @classmethod
    @checked_widgets
    def execute(cls, samples: dict, vae: object) -> io.NodeOutput:
        latent = read_decodable_images(samples, vae)
        width, height = pixel_size_of(vae, latent)
        need = replace(
            image_need("IMAGE", len(latent), width, height, pixel_frame_count(latent.shape[2])),
            smaller=lambda: [("use SwiftI2V Decode to Video, which keeps no clip in memory", 0.0)],
        )
        warn_if_large(need)
        with explain_out_of_memory(need, device_of(vae)):
            return io.NodeOutput(decode_images(vae, latent))


class DecodeToVideo(io.ComfyNode):
    """Decode a latent into a video file that carries the workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_DecodeToVideo",
            display_name="SwiftI2V Decode to Video",
            category=CATEGORY,
            description="Decodes a video latent and writes it to a file in the output folder. Drop the "
            "file on ComfyUI to get the workflow back.",
            search_aliases=["save video", "mp4", "webm", "swifti2v"],
            inputs=[
                io.Latent.Input("samples", tooltip="The latent to decode, one clip."),
                io.Vae.Input(
                    "vae",
                    tooltip="The VAE that made the latent: Wan2.2 (48 channels) for Stage II.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="video/SwiftI2V",
                    tooltip="Folder and start of the file name inside ComfyUI's output folder; a number "
                    "is added. ComfyUI's placeholders work: %date:yyyy-MM-dd%, %KSampler.seed%, "
                    "%width%, %year%.",
                ),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second. Default 16, the rate of Wan2.2-I2V-A14B; TI2V-5B was "
                    "trained at 24. 23.98, 29.97 and 59.94 are written as the exact NTSC rates.",
                ),
                io.Combo.Input(
                    "codec",
                    options=list(CODECS),
                    default="h264",
                    tooltip="h264 (default, MP4) plays everywhere; vp9 and av1 (WebM) make smaller files "
                    "and take longer to write.",
                ),
                io.Int.Input(
                    "crf",
                    default=17,
                    min=0,
                    max=63,
                    tooltip="Quality of the file: lower is better and larger. Default 17, visually "
                    "lossless in h264; 25 to 32 suits vp9 and av1. At most 51 for h264, which writes 0 "
                    "as 1, so that every player shows the file.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            outputs=[
                io.Video.Output(
                    display_name="video", tooltip="The written file, for nodes that take a video."
                )
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        samples: dict,
        vae: object,
        filename_prefix: str,
        fps: float,
        codec: str,
        crf: int,
    ) -> io.NodeOutput:
        latent = read_one_clip(samples, vae)
        width, height = pixel_size_of(vae, latent)
        chosen = CODECS[codec]
        if crf > chosen.highest_crf:
            raise ValueError(
                f"crf is {crf}, but {codec} knows 0 to {chosen.highest_crf}; "
                f"the nearest valid value is {chosen.highest_crf}."
            )
        chosen.check_available()
        chosen.check_size(width, height)
        prompt, extra = cls.hidden.prompt, cls.hidden.extra_pnginfo
        prefix = fill_placeholders(filename_prefix, prompt, extra, datetime.now())
        check_filename_prefix(prefix)
        tags = workflow_metadata(prompt, extra)
        report = frame_progress(pixel_frame_count(latent.shape[2]))
        need = MemoryNeed(f"The video file of {width}x{height}", None)
        with (
            reserved_output_file(prefix, chosen.extension, width, height) as (path, subfolder),
            explain_out_of_memory(need, device_of(vae)),
        ):
            pieces = decode_bytes(vae, latent, report)
            first = next(pieces)
            height, width = first.shape[1:3]
            with VideoFile(path, width, height, frame_rate(fps), chosen, crf, tags) as video:
                frames = (frame for piece in chain((first,), pieces) for frame in piece)
                for frame in frames:
                    video.write(frame)
                    check_interrupted()
        preview = ui.PreviewVideo([ui.SavedResult(path.name, subfolder, io.FolderType.output)])
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=preview)
