"""A video file that is either complete or not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ...swifti2v_core.images import to_bytes, to_words
from ...swifti2v_core.yuv import to_yuv420_10
from ..comfyui.output_files import part_of
from .sound import LAYOUTS, RATE, audio_frame, sample_count

BT709 = 1
"""Number of BT.709 in the standards' tables of primaries and transfer functions (ITU-T H.273)."""


SOUND_BIT_RATE = 192_000
"""Bits per second of sound, transparent in AAC and Opus with two channels."""


@dataclass(frozen=True)
class Codec:
    """How one choice of the codec widget is written."""

    name: str
    encoder: str
    extension: str  # also the container's name in FFmpeg
    highest_crf: int
    sides: tuple[int, int]  # shortest and longest, in pixels
    sound_encoder: str
    lowest_crf: int = 0  # lower ones are written as this
    tag: str = ""  # name of the codec in the container, where the usual one does not play everywhere
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)

    def check_available(self) -> None:
        """Raise ValueError if the installed FFmpeg was built without this encoder."""
        if self.encoder not in av.codecs_available:
            raise ValueError(
                f"The encoder {self.encoder} is not part of the installed PyAV; choose h264, or install "
                "the PyAV wheel that ComfyUI's requirements ask for."
            )

    def check_crf(self, crf: int) -> None:
        """Raise ValueError if the encoder knows no such constant rate factor."""
        if crf > self.highest_crf:
            raise ValueError(
                f"crf is {crf}, but {self.name} knows 0 to {self.highest_crf}; "
                f"the nearest valid value is {self.highest_crf}."
            )

    def check_depth(self, depth: Depth) -> None:
        """Raise ValueError if the installed encoder cannot write a bit depth."""
        known = av.Codec(self.encoder, "w").video_formats or []
        if depth.pixel_format not in [each.name for each in known]:
            raise ValueError(
                f"bit_depth is {depth.bits}, but the installed encoder {self.encoder} writes 8 bits only; "
                "the nearest valid value is 8, or choose another codec."
            )

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError if the encoder cannot write frames of a size."""
        shortest, longest = self.sides
        if not shortest <= min(width, height) <= max(width, height) <= longest:
            nearest = "x".join(str(min(max(side, shortest), longest)) for side in (width, height))
            raise ValueError(
                f"The clip is {width}x{height}, but the encoder {self.encoder} writes sides of {shortest} "
                f"to {longest} pixels; the nearest valid size is {nearest}, or choose another codec."
            )


# use_metadata_tags keeps the workflow; faststart lets browsers play while loading. In the usual 1000 steps
# per second, sound would not end with the last frame.
MP4 = {"movflags": "use_metadata_tags+faststart", "movie_timescale": str(RATE)}

H264 = Codec(
    "h264",
    "libx264",
    "mp4",
    51,
    (2, 16384),
    "aac",
    lowest_crf=1,  # 0 would be lossless, in a profile that many players cannot show
    container_options=MP4,
)
VP9 = Codec(
    "vp9",
    "libvpx-vp9",
    "webm",
    63,
    (2, 16384),
    "libopus",
    # Bit rate 0 makes crf the only target; row-mt and cpu-used bring 2K encoding to a usable speed.
    options={"b": "0", "row-mt": "1", "cpu-used": "4"},
)
# SVT-AV1 never comes back from some sizes with a side below 64, its documented minimum; x265 refuses some.
AV1 = Codec("av1", "libsvtav1", "webm", 63, (64, 8704), "libopus", options={"preset": "7"})
HEVC = Codec(
    "hevc",
    "libx265",
    "mp4",
    51,
    (64, 8192),
    "aac",
    tag="hvc1",  # Apple's players take no other
    options={"x265-params": "log-level=error"},  # x265 reports to the console by itself
    container_options=MP4,
)

CODECS = {codec.name: codec for codec in (H264, VP9, AV1, HEVC)}
"""Choices of the codec widget."""


NTSC_RATES = (24, 30, 48, 60, 120)
"""Whole rates of which 1000/1001 is a rate, too, usually given by two or three decimals."""


def frame_rate(fps: float) -> Fraction:
    """Return a frame rate as a fraction: 23.976 and 23.98 are 24000/1001, 29.97 is 30000/1001."""
    for whole in NTSC_RATES:
        exact = Fraction(whole * 1000, 1001)
        if abs(fps - exact) < 0.005:
            return exact
    return Fraction(fps).limit_denominator(1000)


@dataclass(frozen=True)
class Depth:
    """How frames of a bit depth go into a file.

    Attributes
    ----------
    bits
        Bits of a color.
    pixel_format
        FFmpeg's name of the encoder's input.
    convert
        Makes the integers that leave the device of frames of 0..1.
    picture
        Makes the encoder's input of a frame ``[H, W, 3]`` of these integers.
    """

    bits: int
    pixel_format: str
    convert: Callable[[torch.Tensor], torch.Tensor]
    picture: Callable[[torch.Tensor], av.VideoFrame]


def _picture_8(frame: torch.Tensor) -> av.VideoFrame:
    picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
    return picture.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )


def _picture_10(frame: torch.Tensor) -> av.VideoFrame:
    picture = av.VideoFrame(frame.shape[1], frame.shape[0], "yuv420p10le")
    for plane, levels in zip(picture.planes, to_yuv420_10(frame), strict=True):
        rows = np.frombuffer(cast(Any, plane), np.int16).reshape(
            plane.height, -1
        )  # rows end in unused bytes
        rows[:, : plane.width] = levels.numpy()
    return picture


DEPTHS = {
    "8": Depth(8, "yuv420p", to_bytes, _picture_8),
    "10": Depth(10, "yuv420p10le", to_words, _picture_10),
}
"""Choices of the bit_depth widget."""


class VideoFile:
    """Writes frames one by one; when anything fails, the unfinished file is removed.

    Parameters
    ----------
    path
        File to write.
    width, height
        Frame size in pixels, even.
    rate
        Frames per second.
    codec
        One of `CODECS`.
    crf
        Constant rate factor of the codec.
    tags
        Metadata of the file; ComfyUI looks for ``prompt`` and ``workflow``.
    depth
        One of `DEPTHS`.
    sound
        ``[1 or 2, samples]`` float32 at `sound.RATE`, as long as the clip; None for a silent file.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        rate: Fraction,
        codec: Codec,
        crf: int,
        tags: dict[str, str],
        depth: Depth = DEPTHS["8"],
        sound: np.ndarray | None = None,
    ) -> None:
        self._path, self._rate, self._depth = path, rate, depth
        # Only a complete file gets the name; a killed process leaves a .part.
        self._part = part_of(path)
        self._container = av.open(
            str(self._part),
            mode="w",
            format=codec.extension,
            options=dict(codec.container_options),
        )
        try:
            self._container.metadata.update(tags)
            options = {"crf": str(max(crf, codec.lowest_crf)), **codec.options}
            stream = self._container.add_stream(codec.encoder, rate=rate, options=options)
            self._stream = cast(VideoStream, stream)  # all our encoders are video
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = depth.pixel_format
            self._mark_colors()
            if codec.tag:
                self._stream.codec_context.codec_tag = codec.tag
            self._sound = (
                None if sound is None else _SoundTrack(self._container, codec.sound_encoder, sound)
            )
        except BaseException:
            self._discard()
            raise
        self._written = 0

    def _mark_colors(self) -> None:
        # Unmarked HD video is BT.709 to players but BT.601 to FFmpeg's converter: colors would shift.
        context = self._stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = BT709
        context.color_trc = BT709

    def write(self, frame: torch.Tensor) -> None:
        """Encode one frame ``[H, W, 3]`` of the depth's integers, and the sound that belongs to it."""
        self._container.mux(self._stream.encode(self._depth.picture(frame)))
        self._written += 1
        if self._sound is not None:
            self._sound.write(sample_count(self._written, self._rate))

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._container.mux(self._stream.encode())
            if self._sound is not None:
                self._sound.finish()
            self._container.close()
            self._part.replace(self._path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        try:
            self._container.close()
        finally:
            self._part.unlink(missing_ok=True)


class _SoundTrack:
    """The sound of a file, written little by little beside the frames."""

    def __init__(self, container: OutputContainer, encoder: str, samples: np.ndarray) -> None:
        self._container, self._samples, self._written = container, samples, 0
        stream = container.add_stream(encoder, rate=RATE, layout=LAYOUTS[len(samples)])
        self._stream = cast(AudioStream, stream)
        self._stream.bit_rate = SOUND_BIT_RATE

    def write(self, until: int) -> None:
        """Encode the samples before a number that are not yet written."""
        piece = self._samples[:, self._written : until]
        if piece.size:
            self._container.mux(self._stream.encode(audio_frame(piece, RATE, self._written)))
            self._written += piece.shape[1]

    def finish(self) -> None:
        """Encode what the encoder still holds."""
        self._container.mux(self._stream.encode())
