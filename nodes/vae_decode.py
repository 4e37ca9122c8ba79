"""From latent to IMAGE or to a video file."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain

from comfy_api.latest import InputImpl, io, ui

from ..swifti2v_core.geometry import pixel_frame_count
from . import checks
from .comfyui import model_files
from .comfyui.internals import SAVING, needing
from .comfyui.progress import frame_progress
from .pipeline import autoencoder, memory_advice
from .pipeline.video_file import CODECS, VideoFile

CATEGORY = "SwiftI2V"


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
    @checks.checked_widgets
    def execute(cls, samples: dict, vae: object) -> io.NodeOutput:
        latent = checks.decodable_at_once(samples, vae)
        width, height = autoencoder.pixel_size_of(vae, latent)
        frames = pixel_frame_count(latent.shape[2])
        work = replace(
            memory_advice.image_work("IMAGE", len(latent), width, height, frames),
            smaller=lambda: [("use SwiftI2V Decode to Video, which keeps no clip in memory", 0.0)],
        )
        memory_advice.warn_if_large(work)
        decode = partial(autoencoder.decode_images, vae, latent)
        return io.NodeOutput(memory_advice.telling(lambda: work, autoencoder.device_of(vae), decode))


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
                    "is added. Placeholders such as %year% work.",
                ),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second. Default 16, the rate of Wan2.2-I2V-A14B; TI2V-5B was "
                    "trained at 24.",
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
                    "lossless in h264; 25 to 32 suits vp9 and av1. At most 51 for h264.",
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
    @needing(SAVING)
    @checks.checked_widgets
    def execute(
        cls,
        samples: dict,
        vae: object,
        filename_prefix: str,
        fps: float,
        codec: str,
        crf: int,
    ) -> io.NodeOutput:
        latent, width, height = checks.one_decodable_clip(samples, vae)
        chosen = CODECS[codec]
        if crf > chosen.highest_crf:
            raise ValueError(
                f"crf is {crf}, but {codec} knows 0 to {chosen.highest_crf}; "
                f"the nearest valid value is {chosen.highest_crf}."
            )
        chosen.check_available()
        chosen.check_size(width, height)
        checks.filename_prefix(filename_prefix)
        tags = model_files.workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        rate = Fraction(fps).limit_denominator(1000)
        report = frame_progress(pixel_frame_count(latent.shape[2]))

        def write() -> io.NodeOutput:
            pieces = autoencoder.decode_bytes(vae, latent)
            first = next(pieces)
            height, width = first.shape[1:3]
            path, file, subfolder = model_files.save_path(filename_prefix, chosen.extension, width, height)
            with VideoFile(path, width, height, rate, chosen, crf, tags) as video:
                frames = (frame for piece in chain((first,), pieces) for frame in piece)
                for done, frame in enumerate(frames, start=1):
                    video.write(frame)
                    report(done)
            preview = ui.PreviewVideo([ui.SavedResult(file, subfolder, io.FolderType.output)])
            return io.NodeOutput(InputImpl.VideoFromFile(path), ui=preview)

        work = memory_advice.Work(f"The video file of {width}x{height}", None)
        return memory_advice.telling(lambda: work, autoencoder.device_of(vae), write)
