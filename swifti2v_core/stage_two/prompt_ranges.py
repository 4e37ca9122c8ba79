"""Prompts for time ranges: the prompts that a segment is generated with.

Index arithmetic only. A range counts the frames of the finished clip, not latent frames, because those are
the frames that users see. The papers use one prompt per clip.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry import pixel_frame_count
from .segments import Segment

FrameRange = tuple[int, int]
"""First pixel frame of a range and the first one after it; an end of 0 is the end of the clip."""

WHOLE_CLIP: FrameRange = (0, 0)
"""The range of a prompt without a range."""


def check_frame_range(start: int, end: int) -> None:
    """Raise ValueError unless the frames ``start`` to ``end - 1`` are a range; ``end`` 0 leaves it open."""
    if start < 0:
        raise ValueError(f"start_frame is {start}, but frames count from 0; the nearest valid value is 0.")
    if end and end <= start:
        raise ValueError(
            f"start_frame is {start} and end_frame {end}, but a range must end after it starts, or be 0 "
            f"for the end of the clip; the nearest valid end_frame is {start + 1}."
        )


def check_ranges_in_clip(ranges: Sequence[FrameRange], frames: int, what: str) -> None:
    """Raise ValueError if all ranges of a prompt start after the end of the clip.

    Some may: a shorter clip, to preview the beginning, needs no change of the ranges.

    Parameters
    ----------
    ranges
        One per entry of the prompt.
    frames
        Pixel frames of the clip.
    what
        Name of the prompt, for the message.
    """
    first = min((start for start, end in ranges if (start, end) != WHOLE_CLIP), default=0)
    if first >= frames:
        raise ValueError(
            f"{what} has prompts from frame {first} on, but the clip has {frames} frames, 0 to {frames - 1}"
            f"; the nearest valid start_frame is {frames - 1}."
        )


def middle_frame(segment: Segment) -> int:
    """Return the middle pixel frame of those that a segment generates, the earlier of two."""
    first, stop = pixel_frame_count(segment.noisy[0]), pixel_frame_count(segment.noisy[-1] + 1)
    return (first + stop - 1) // 2


def chosen_prompts(ranges: Sequence[FrameRange], segment: Segment) -> list[int]:
    """Choose the prompts that a segment is generated with.

    These are all prompts whose range contains the segment's middle frame. If there is none, the nearest
    frame that has a prompt takes its place, the earlier of two, so that every segment has a prompt.

    Parameters
    ----------
    ranges
        One per prompt, `WHOLE_CLIP` for a prompt that always applies.
    segment
        The segment.

    Returns
    -------
    list of int
        Indices into ``ranges``, ascending; empty only if ``ranges`` is.
    """
    middle = middle_frame(segment)
    nearest = min(
        (_nearest_frame(each, middle) for each in ranges),
        key=lambda frame: (abs(frame - middle), frame),
        default=middle,
    )
    return [index for index, each in enumerate(ranges) if _nearest_frame(each, nearest) == nearest]


def unused_ranges(ranges: Sequence[FrameRange], segments: Sequence[Segment]) -> list[FrameRange]:
    """Return the ranges of the prompts that no segment of a plan uses."""
    used = {index for segment in segments for index in chosen_prompts(ranges, segment)}
    return [each for index, each in enumerate(ranges) if index not in used]


def _nearest_frame(frames: FrameRange, frame: int) -> int:
    """Return the frame of a range that is nearest to ``frame``."""
    start, end = frames
    return max(start, min(frame, end - 1) if end else frame)
