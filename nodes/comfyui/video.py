"""VIDEO: the file that it is read from, and what it holds where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
from comfy_api.latest import InputImpl

ROUNDING_SECONDS = 0.01
"""By how much two durations of one file may differ."""


@dataclass(frozen=True)
class VideoSource:
    """A video file and the part of it that counts.

    Attributes
    ----------
    file
        Path, or an open binary file.
    start, duration
        Seconds; duration 0 is all that follows.
    """

    file: Any
    start: float = 0.0
    duration: float = 0.0


def is_video(value: Any) -> bool:
    """Return whether a value is a VIDEO."""
    return hasattr(value, "get_components") and hasattr(value, "get_dimensions")


def source_of(video: Any) -> VideoSource | None:
    """Return the file from which the frames of a VIDEO can be decoded one by one.

    None for a VIDEO that is made of frames, and for one that ComfyUI changes in a way that is not known
    here, such as a crop: its `components_of` are right.
    """
    if type(video) is not InputImpl.VideoFromFile:
        return None
    file = video.get_stream_source()
    with av.open(file) as container:
        if not container.streams.video:
            raise LookupError("no picture in it")
        stream = container.streams.video[0]
        size, seconds = {stream.width, stream.height}, container.duration
    if {*video.get_dimensions()} != size:
        return None
    if hasattr(video, "get_active_trim_window"):
        return VideoSource(file, *video.get_active_trim_window())
    # Before ComfyUI 0.30 a cut shows only in the duration.
    uncut = seconds is not None and abs(video.get_duration() - seconds / av.time_base) < ROUNDING_SECONDS
    return VideoSource(file) if uncut else None


def components_of(video: Any) -> tuple[Any, float, Any]:
    """Return the frames of a VIDEO as one IMAGE, its frames per second and its AUDIO, None without."""
    components = video.get_components()
    return components.images, float(components.frame_rate), components.audio
