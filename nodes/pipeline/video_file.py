"""A video file that is either complete or not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import torch
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from ..comfyui.output_files import part_of

BT709 = 1
"""Number of BT.709 in the standards' tables of primaries and transfer functions (ITU-T H.273)."""


@dataclass(frozen=True)
class Codec:
    """How one choice of the codec widget is written."""

    encoder: str
    extension: str  # also the container's name in FFmpeg
    highest_crf: int
    sides: tuple[int, int]  # shortest and longest, in pixels
    lowest_crf: int = 0  # lower ones are written as this
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)

    def check_available(self) -> None:
        """Raise ValueError if the installed FFmpeg was built without this encoder."""
        if self.encoder not in av.codecs_available:
            raise ValueError(
                f"The encoder {self.encoder} is not part of the installed PyAV; choose h264, or install "
                "the PyAV wheel that ComfyUI's requirements ask for."
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


CODECS = {
    # use_metadata_tags keeps the workflow; faststart lets browsers play while loading.
    # crf 0 would be lossless, in a profile that many players cannot show.
    "h264": Codec(
        "libx264",
        "mp4",
        51,
        (2, 16384),
        lowest_crf=1,
        options={"profile": "high"},
        container_options={"movflags": "use_metadata_tags+faststart"},
    ),
    # Bit rate 0 makes crf the only target; row-mt and cpu-used bring 2K encoding to a usable speed.
    "vp9": Codec("libvpx-vp9", "webm", 63, (2, 16384), options={"b": "0", "row-mt": "1", "cpu-used": "4"}),
    # SVT-AV1 never comes back from some sizes with a side below 64, its documented minimum.
    "av1": Codec("libsvtav1", "webm", 63, (64, 8704), options={"preset": "7"}),
}


NTSC_RATES = (24, 30, 48, 60, 120)
"""Whole rates of which 1000/1001 is a rate, too, usually given by two or three decimals."""


def frame_rate(fps: float) -> Fraction:
    """Return a frame rate as a fraction: 23.976 and 23.98 are 24000/1001, 29.97 is 30000/1001."""
    for whole in NTSC_RATES:
        exact = Fraction(whole * 1000, 1001)
        if abs(fps - exact) < 0.005:
            return exact
    return Fraction(fps).limit_denominator(1000)


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
    ) -> None:
        self._path = path
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
            stream = self._container.add_stream(
                codec.encoder, rate=rate, options={"crf": str(max(crf, codec.lowest_crf)), **codec.options}
            )
            self._stream = cast(VideoStream, stream)  # all our encoders are video
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            self._mark_colors()
        except BaseException:
            self._discard()
            raise

    def _mark_colors(self) -> None:
        # Unmarked HD video is BT.709 to players but BT.601 to FFmpeg's converter: colors would shift.
        context = self._stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = BT709
        context.color_trc = BT709

    def write(self, frame: torch.Tensor) -> None:
        """Encode one frame ``[H, W, 3]``, uint8."""
        picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
        picture = picture.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        self._container.mux(self._stream.encode(picture))

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
