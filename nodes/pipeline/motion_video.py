"""Motion from a VIDEO: its frames one by one, its rate and its sound."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import torch

from ...swifti2v_core.reference.hybrid import Frames
from ..comfyui.video import VideoSource, components_of, is_video, source_of


@dataclass(frozen=True)
class Motion:
    """A motion clip.

    Attributes
    ----------
    frames
        ``[F, H, W, 3]``: an IMAGE, or frames that are decoded when they are asked for.
    rate
        Frames per second, None for an IMAGE.
    audio
        AUDIO, None without.
    """

    frames: Frames
    rate: float | None = None
    audio: dict[str, Any] | None = None

    def rate_of(self, frames: int) -> float | None:
        """Return the frames per second at which as many frames of the whole clip keep its speed."""
        steps = len(self.frames) - 1
        return self.rate * (frames - 1) / steps if self.rate and steps else self.rate


@contextmanager
def opened_motion(value: Any) -> Iterator[Motion]:
    """Open the motion clip of an IMAGE or a VIDEO.

    Raises
    ------
    ValueError
        If a video cannot be read.
    """
    if not is_video(value):
        yield Motion(value)
        return
    try:
        source = source_of(value)
        video = None if source is None else VideoFrames(source)
    except (av.error.FFmpegError, LookupError) as error:
        raise ValueError(
            f"The motion video cannot be read ({error}), but must be a file that FFmpeg decodes; save it "
            "as MP4 with H.264, for example."
        ) from None
    if video is None or source is None:
        yield Motion(*components_of(value))
        return
    with closing(video):
        yield Motion(video, video.rate, read_sound(source))


class VideoFrames:
    """Frames of a video file that are decoded when they are asked for; it reads like an IMAGE.

    Frames are best asked for in ascending order: an earlier one than before starts the file over.

    Parameters
    ----------
    source
        The file.

    Attributes
    ----------
    shape
        ``(F, H, W, 3)``.
    rate
        Frames per second, on average.
    """

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        count, self.rate = _count_frames(source)
        self._start()
        self.shape = (count, *self._current.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | list[int]) -> torch.Tensor:
        """Return frames ``[n, H, W, 3]`` float32, 0..1."""
        numbers = range(len(self))[index] if isinstance(index, slice) else index
        return torch.stack([self._frame(number) for number in numbers])

    def close(self) -> None:
        """Close the file."""
        self._pictures.close()

    def _start(self) -> None:
        self._pictures = _decoded(self._source)
        first = next(self._pictures, None)
        if first is None:
            raise LookupError("no frame in it")
        self._number, self._current = 0, _as_image(first)

    def _frame(self, number: int) -> torch.Tensor:
        if number < self._number:
            self.close()
            self._start()
        picture = None
        while self._number < number and (following := next(self._pictures, None)) is not None:
            self._number, picture = self._number + 1, following
        if picture is not None:
            self._current = _as_image(picture)
        self._number = number  # where frames are damaged, the last one stays
        return self._current


def _as_image(picture: av.VideoFrame) -> torch.Tensor:
    """Return a frame upright, ``[H, W, 3]`` float32, 0..1."""
    fine = any(component.bits > 8 for component in picture.format.components)
    pixels = picture.to_ndarray(format="rgb48le" if fine else "rgb24")
    turned = np.rot90(pixels, round(getattr(picture, "rotation", 0) / 90))
    return torch.from_numpy(np.ascontiguousarray(turned, np.float32)).div_(65535 if fine else 255)


def _decoded(source: VideoSource) -> Generator[av.VideoFrame, None, None]:
    """Decode the frames of a file that count."""
    with _opened(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for packet in container.demux(stream):
            try:
                pictures = packet.decode()
            except av.error.InvalidDataError:
                continue  # damaged
            for picture in pictures:
                if _is_inside(source, picture):
                    yield picture


def _count_frames(source: VideoSource) -> tuple[int, float]:
    """Return the number of frames of a file that count, without decoding them, and its frame rate."""
    with _opened(source) as container:
        stream = container.streams.video[0]
        count = sum(
            packet.size > 0 and not packet.is_discard and _is_inside(source, packet)
            for packet in container.demux(stream)
        )
        return count, float(stream.average_rate or 1)


@contextmanager
def _opened(source: VideoSource) -> Iterator[Any]:
    """Open a file at the start of the part that counts, or a little before."""
    if hasattr(source.file, "seek"):
        source.file.seek(0)
    with av.open(source.file) as container:
        if source.start:
            container.seek(int(source.start * av.time_base))
        yield container


def _is_inside(source: VideoSource, part: Any) -> bool:
    """Return whether a packet or frame belongs to the part of a file that counts."""
    if part.pts is None:
        return True
    # In the units of the file, as ComfyUI rounds.
    start, end = (int(time / part.time_base) for time in (source.start, source.start + source.duration))
    return bool(start <= part.pts and (part.pts < end or not source.duration))


def read_sound(source: VideoSource) -> dict[str, Any] | None:
    """Return the AUDIO of a file, None without; of several sounds ComfyUI takes the last, too."""
    with _opened(source) as container:
        streams = [each for each in container.streams.audio if each.codec_context is not None]
        if not streams:
            return None
        resampler, pieces, times = av.AudioResampler(format="fltp"), [], []
        for packet in container.demux(streams[-1]):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue  # damaged
            for frame in frames:
                if source.duration and frame.time > source.start + source.duration:
                    break
                times.append(frame.time or 0.0)
                pieces += [each.to_ndarray() for each in resampler.resample(frame)]
        rate = streams[-1].rate
    if not pieces:
        return None
    samples = np.concatenate(pieces, axis=1)
    offset = round((source.start - times[0]) * rate)
    samples = samples[:, offset:] if offset > 0 else np.pad(samples, ((0, 0), (-offset, 0)))
    if source.duration:
        samples = samples[:, : round(source.duration * rate)]
    return {"waveform": torch.from_numpy(np.ascontiguousarray(samples))[None], "sample_rate": rate}
