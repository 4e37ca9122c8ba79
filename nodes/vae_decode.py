"""From latent to IMAGE or to a video file."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from comfy_api.latest import InputImpl, io, ui

from ..swifti2v_core.geometry import pixel_frame_count
from ..swifti2v_core.progress import counting_from
from .checks.audio import read_sounds
from .checks.file_names import check_filename_prefix, check_plain_prefix
from .checks.latents import read_decodable_clips, read_decodable_images
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.output_files import workflow_metadata
from .comfyui.progress import frame_progress
from .comfyui.vae import device_of, pixel_size_of
from .pipeline.clip_file import FileSettings, write_clip
from .pipeline.decode import decode_images
from .pipeline.memory_advice import MemoryNeed, explain_out_of_memory, image_need, warn_if_large
from .pipeline.output_name import fill_placeholders
from .pipeline.video_file import CODECS, DEPTHS, frame_rate
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


def _check_codec(codec: str, crf: int) -> None:
    CODECS[codec].check_available()
    CODECS[codec].check_crf(crf)


def _check_depth(codec: str, bit_depth: str) -> None:
    CODECS[codec].check_depth(DEPTHS[bit_depth])


@refused_when_queued(
    (check_plain_prefix, ("filename_prefix",)),
    (_check_codec, ("codec", "crf")),
    (_check_depth, ("codec", "bit_depth")),
)
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
                io.Latent.Input(
                    "samples", tooltip="The latent to decode. Each clip of a batch gets a file of its own."
                ),
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
                    tooltip="h264 (default, MP4) plays everywhere; vp9 and av1 (WebM) make smaller files, "
                    "take longer to write and play in browsers. hevc (MP4) makes smaller files, too, and "
                    "plays in Safari and on phones; in other browsers only where the graphics card "
                    "decodes it.",
                ),
                io.Int.Input(
                    "crf",
                    default=17,
                    min=0,
                    max=63,
                    tooltip="Quality of the file: lower is better and larger. Default 17, visually "
                    "lossless in h264; 25 to 32 suits vp9 and av1. At most 51 for h264 and hevc. h264 "
                    "writes 0 as 1, so that every player shows the file.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound of the video, from Get Video Components or Load Audio, for example. It "
                    "is cut to the length of the clip, or padded with silence, and written as 48 kHz mono "
                    "or stereo. Unconnected: a silent file.",
                ),
                io.Combo.Input(
                    "bit_depth",
                    options=list(DEPTHS),
                    default="8",
                    optional=True,
                    tooltip="Bits of each color. Default 8, which plays everywhere. 10 avoids bands in "
                    "skies and other slow gradients: av1 with 10 plays in browsers, hevc with 10 where "
                    "hevc does, h264 with 10 in Chrome and in players on computers. vp9 has 8 only.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            outputs=[
                io.Video.Output(
                    display_name="video",
                    tooltip="The written file, for nodes that take a video. For a batch a list, one file "
                    "for each clip.",
                    is_output_list=True,
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
        audio: dict | None = None,
        bit_depth: str = "8",
    ) -> io.NodeOutput:
        latent = read_decodable_clips(samples, vae)
        width, height = pixel_size_of(vae, latent)
        chosen, depth = CODECS[codec], DEPTHS[bit_depth]
        chosen.check_size(width, height)
        sounds = read_sounds(audio, len(latent))
        prompt, extra = cls.hidden.prompt, cls.hidden.extra_pnginfo
        prefix = fill_placeholders(filename_prefix, prompt, extra, datetime.now())
        check_filename_prefix(prefix)
        tags = workflow_metadata(prompt, extra)
        settings = FileSettings(prefix, frame_rate(fps), chosen, depth, crf, tags)
        frames = pixel_frame_count(latent.shape[2])
        report = frame_progress(len(latent) * frames)
        need = MemoryNeed(f"The video file of {width}x{height}", None)
        with explain_out_of_memory(need, device_of(vae)):
            saved = [
                write_clip(vae, clip, settings, sound, counting_from(report, number * frames))
                for number, (clip, sound) in enumerate(zip(latent.split(1), sounds, strict=True))
            ]
        shown = [ui.SavedResult(path.name, subfolder, io.FolderType.output) for path, subfolder in saved]
        videos = [InputImpl.VideoFromFile(str(path)) for path, _ in saved]
        return io.NodeOutput(videos, ui=ui.PreviewVideo(shown))
