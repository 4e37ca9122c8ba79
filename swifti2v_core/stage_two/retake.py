"""Retake: chosen segments of a finished clip are made again, between the finished frames on both sides.

A segment is normally made without knowing what follows, because nothing does yet. In a finished clip the
next frames exist. A retake shows them to the model as it shows a keyframe after the segment: clean, each at
its own time. Frames of the segments that are not chosen keep their bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..text import shortened
from .segments import Segment


def parse_retake(text: str, count: int) -> list[int]:
    """Parse the numbers of segments to make again, such as ``"3, 5"``.

    Parameters
    ----------
    text
        Numbers from 0 to ``count - 1`` in any order; empty chooses none.
    count
        Number of segments of the clip.

    Returns
    -------
    list of int
        The numbers, ascending, each once.

    Raises
    ------
    ValueError
        If the text is not numbers in this range.
    """
    last, quoted = count - 1, shortened(text)
    if not text.strip():
        return []
    try:
        numbers = {int(part) for part in text.replace(",", " ").split() or [text]}
    except ValueError:
        raise ValueError(
            f'retake is "{quoted}", but must be numbers of segments separated by commas, from 0 to '
            f'{last}, for example "{last}".'
        ) from None
    if not all(0 <= number <= last for number in numbers):
        nearest = sorted({min(max(number, 0), last) for number in numbers})
        raise ValueError(
            f'retake is "{quoted}", but the clip has {count} segments, numbered from 0 to {last}; the '
            f'nearest valid value is "{shortened(", ".join(map(str, nearest)))}".'
        )
    return sorted(numbers)


def plan_retake(segments: Sequence[Segment], chosen: Sequence[int], neighbors: int) -> list[Segment]:
    """Return the chosen segments of a plan, their windows extended by finished frames after them.

    Frames that are to be made again are left out: of two chosen segments in a row, both see the frames
    after the second one. Before it, the second sees the first one's new frames, as usual.

    Parameters
    ----------
    segments
        The plan of the clip.
    chosen
        Numbers of the segments to make again, ascending.
    neighbors
        N, finished frames after a segment, as many as before it, if the clip has them.
    """
    replaced = {frame for index in chosen for frame in segments[index].noisy}
    stop = segments[-1].noisy[-1] + 1

    def frames_after(segment: Segment) -> list[int]:
        later = range(segment.noisy[-1] + 1, stop)
        return [frame for frame in later if frame not in replaced][:neighbors]

    return [_with_clean_frames(segments[index], frames_after(segments[index])) for index in chosen]


def _with_clean_frames(segment: Segment, frames: Sequence[int]) -> Segment:
    """Return a segment whose window holds more clean frames, after the others and at their own times."""
    clean = segment.clean
    return replace(
        segment,
        window=(*segment.window[:clean], *frames, *segment.window[clean:]),
        clean=clean + len(frames),
        times=(*segment.times[:clean], *frames, *segment.times[clean:]),
    )


def keep_others(latents: Tensor, finished: Tensor, segments: Sequence[Segment]) -> None:
    """Copy all frames that are not made again from a finished clip into working latents, in place.

    Parameters
    ----------
    latents, finished
        ``[B, C, T, h, w]`` each. The frames of ``latents`` in the segments are kept: they are the reference
        that the segments follow.
    segments
        The segments to make again.
    """
    replaced = {frame for segment in segments for frame in segment.noisy}
    kept = [frame for frame in range(latents.shape[2]) if frame not in replaced]
    latents[:, :, kept] = finished[:, :, kept].to(latents)
