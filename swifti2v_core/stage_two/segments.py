"""The segment plan: the latent frames of a window, their order, and their time positions.

Index arithmetic only. A *segment* is the M latent frames that one sampling generates. Its *window* is
what the model sees: ``[anchor | neighbors | noisy]`` (SwiftI2V, section on conditional segment-wise
generation; M = 3, N = 1 in the paper).

*Keyframes*, more photos at chosen times, extend the paper: ``[anchor | keyframes | neighbors | noisy]``
with the nearest keyframes. They are clean frames, appended after the clip in the working latents, and
share their time with the frame generated there. A *retake* adds finished frames after the segment
(`retake.plan_retake`). The order inside a window does not matter to the model, which knows times only from
the time positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..geometry import tokens_per_latent_frame

TRAINED_LATENT_FRAMES = 31
"""Latent frames of the longest clip Wan2.2-TI2V-5B was trained on (121 pixel frames)."""


@dataclass(frozen=True)
class Segment:
    """One segment and the window that it is generated in.

    Attributes
    ----------
    index
        Index of the segment in the plan, from 0.
    window
        Indices of the window's latent frames, in the model's order; keyframes are numbered after the clip.
    clean
        Number of leading frames of ``window`` that are clean (anchor, keyframes, neighbors and, in a
        retake, finished frames after the segment).
    times
        Time of every frame of ``window``, as a latent frame of the clip.
    """

    index: int
    window: tuple[int, ...]
    clean: int
    times: tuple[int, ...]

    @property
    def noisy(self) -> tuple[int, ...]:
        """Latent frames of the clip that this segment generates, consecutive and ascending."""
        return self.window[self.clean :]


def plan_segments(
    latent_frames: int, segment_frames: int = 3, neighbors: int = 1, keyframes: Sequence[int] = ()
) -> list[Segment]:
    """Cut a clip into segments.

    Latent frame 0 is the anchor and belongs to every window. The first segment has no neighbor: the
    frame before it is the anchor itself. The last segment may be short; it then takes more neighbors, if
    they exist, so that all windows have one shape.

    Parameters
    ----------
    latent_frames
        T, latent frames of the whole clip, at least 2.
    segment_frames
        M, latent frames generated per segment, at least 1.
    neighbors
        N, generated latent frames directly before the segment, 0 to ``max(1, T - 2)``.
    keyframes
        Times of the keyframes, ascending latent frames from 1 to T-1. A segment sees the last keyframe
        before it, those inside it and the first one after it.

    Returns
    -------
    list of Segment
        Segments in order; together they generate each of the frames 1 to T-1 once.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """
    _check_plan(latent_frames, segment_frames, neighbors)
    _check_keyframes(latent_frames, keyframes)
    segments = []
    for index, start in enumerate(range(1, latent_frames, segment_frames)):
        stop = min(start + segment_frames, latent_frames)
        missing = segment_frames - (stop - start)
        first_neighbor = max(1, start - neighbors - missing)
        near = _near(keyframes, start, stop)
        rest = tuple(range(first_neighbor, stop))
        window = (0, *(latent_frames + number for number in near), *rest)
        times = (0, *(keyframes[number] for number in near), *rest)
        segments.append(Segment(index, window, len(window) - (stop - start), times))
    return segments


def _near(keyframes: Sequence[int], start: int, stop: int) -> range:
    """Return the keyframes that a segment sees: the last before, all inside, the first after."""
    before = sum(time < start for time in keyframes)
    inside = sum(start <= time < stop for time in keyframes)
    return range(max(0, before - 1), min(before + inside + 1, len(keyframes)))


def _check_keyframes(latent_frames: int, keyframes: Sequence[int]) -> None:
    for time in keyframes:
        if not 1 <= time < latent_frames:
            raise ValueError(
                f"A keyframe is at latent frame {time}, but a clip of {latent_frames} latent frames has "
                f"room at 1 to {latent_frames - 1}; the nearest valid one is "
                f"{min(max(time, 1), latent_frames - 1)}."
            )
    if any(later <= earlier for earlier, later in pairwise(keyframes)):
        raise ValueError(
            f"The keyframes are at latent frames {', '.join(map(str, keyframes))}, but they must ascend, "
            "one per latent frame (4 video frames)."
        )


def _check_plan(latent_frames: int, segment_frames: int, neighbors: int) -> None:
    if latent_frames < 2:
        raise ValueError(
            f"The clip has {latent_frames} latent frame, but the first one is the photo and at "
            "least one more must be generated; the nearest valid number is 2 (5 frames)."
        )
    if segment_frames < 1:
        raise ValueError(
            f"segment_frames (M) is {segment_frames}, but a segment must generate at least one "
            "latent frame; the nearest valid value is 1."
        )
    most = max(1, latent_frames - 2)
    if not 0 <= neighbors <= most:
        raise ValueError(
            f"neighbors (N) is {neighbors}, but in a clip of {latent_frames} latent frames between "
            f"0 and {most} exist; the nearest valid value is {min(max(neighbors, 0), most)}."
        )


def true_positions(segment: Segment) -> tuple[int, ...]:
    """Return the time position of every window frame: its index in the clip."""
    return segment.times


def clamped_positions(
    segment: Segment, trained_latent_frames: int = TRAINED_LATENT_FRAMES
) -> tuple[int, ...]:
    """Return time positions moved into the range the model was trained on.

    All frames but the anchor, which stays at 0, move back by the same amount, so that the last frame of
    the window is at the last trained position. Windows inside the range do not move. A clean frame far
    ahead keeps its distance and may exceed the range; one far back is clamped to 1.

    Raises
    ------
    ValueError
        If the window is longer than the trained range.
    """
    if len(segment.window) > trained_latent_frames:
        # Keyframes, and in a retake the frames after the segment, take room from the others.
        others = sum(
            frame != time or time > segment.noisy[-1]
            for frame, time in zip(segment.window, segment.times, strict=True)
        )
        raise ValueError(
            f"The window has {len(segment.window)} latent frames, but clamped time positions fit "
            f"at most {trained_latent_frames}; choose segment_frames + neighbors of at most "
            f"{trained_latent_frames - 1 - others} or true time positions."
        )
    last = trained_latent_frames - 1
    first = min(
        time for frame, time in zip(segment.window, segment.times, strict=True) if frame == time > 0
    )
    # A clean frame ahead asks for a larger shift than the segment itself; the neighbors must stay above 0.
    needed, wanted = max(0, segment.times[-1] - last), max(0, max(segment.times) - last)
    moved = max(needed, min(wanted, first - 1))
    return (0, *(max(time - moved, 1) for time in segment.times[1:]))


def window_tokens(segments: list[Segment], height: int, width: int) -> int:
    """Return the transformer tokens of the largest window at a pixel size.

    2560x1408 with M = 3, N = 1 gives 17,600, whatever the length of the clip.
    """
    largest = max(len(segment.window) for segment in segments)
    return largest * tokens_per_latent_frame(height, width)
