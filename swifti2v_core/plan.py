"""The segment plan: which latent frames a window holds, in which order, at which positions.

Index arithmetic only. One *segment* is what one sampling finishes: M latent frames. Its *window* is
what the model sees meanwhile: ``[anchor | neighbors | noisy]`` (SwiftI2V, section on conditional
segment-wise generation; M = 3, N = 1 in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import tokens_per_latent_frame

TRAINED_LATENT_FRAMES = 31
"""Latent frames of the longest clip Wan2.2-TI2V-5B was trained on (121 pixel frames)."""


@dataclass(frozen=True)
class Segment:
    """One segment and the window that makes it.

    Attributes
    ----------
    index
        Place of the segment in the plan, from 0.
    window
        Latent frames of the clip that form the window, in the model's order along time.
    clean
        How many leading frames of ``window`` are clean (anchor and neighbors).
    """

    index: int
    window: tuple[int, ...]
    clean: int

    @property
    def noisy(self) -> tuple[int, ...]:
        """Latent frames of the clip that this segment generates, consecutive and ascending."""
        return self.window[self.clean :]


def plan_segments(latent_frames: int, segment_frames: int = 3, neighbors: int = 1) -> list[Segment]:
    """Cut a clip into segments.

    Latent frame 0 is the anchor and belongs to every window. The first segment has no neighbor: the
    frame before it is the anchor itself. The last segment may be short; it takes more neighbors, as
    far as they exist, so that its window keeps the shape of the others.

    Parameters
    ----------
    latent_frames
        T, latent frames of the whole clip, at least 2.
    segment_frames
        M, latent frames generated per segment, at least 1.
    neighbors
        N, generated latent frames right before the segment, 0 to ``max(1, T - 2)``.

    Returns
    -------
    list of Segment
        Segments in order; together they generate the frames 1 to T-1, each once.

    Raises
    ------
    ValueError
        If a number is out of its range.
    """
    _check_plan(latent_frames, segment_frames, neighbors)
    segments = []
    for index, start in enumerate(range(1, latent_frames, segment_frames)):
        stop = min(start + segment_frames, latent_frames)
        missing = segment_frames - (stop - start)
        first_neighbor = max(1, start - neighbors - missing)
        context = (0, *range(first_neighbor, start))
        segments.append(Segment(index, (*context, *range(start, stop)), len(context)))
    return segments


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
    """Return the time position of every window frame: its place in the clip."""
    return segment.window


def clamped_positions(
    segment: Segment, trained_latent_frames: int = TRAINED_LATENT_FRAMES
) -> tuple[int, ...]:
    """Return time positions moved into the range the model was trained on.

    Everything but the anchor moves back by the same amount, so that the last frame of the window
    sits at the last trained position; the anchor stays at 0. Windows inside the range do not move.

    Raises
    ------
    ValueError
        If the window itself is longer than the trained range.
    """
    if len(segment.window) > trained_latent_frames:
        raise ValueError(
            f"The window has {len(segment.window)} latent frames, but clamped time positions fit "
            f"at most {trained_latent_frames}; choose segment_frames + neighbors of at most "
            f"{trained_latent_frames - 1} or true time positions."
        )
    moved = max(0, segment.window[-1] - (trained_latent_frames - 1))
    return (0, *(frame - moved for frame in segment.window[1:]))


def window_tokens(segments: list[Segment], height: int, width: int) -> int:
    """Return the transformer tokens of the largest window at a pixel size.

    2560x1408 with M = 3, N = 1 gives 17,600, whatever the length of the clip.
    """
    largest = max(len(segment.window) for segment in segments)
    return largest * tokens_per_latent_frame(height, width)
