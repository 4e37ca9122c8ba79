"""Camera motion over a photo: a Stage I that invents nothing, and ground truth for tests.

The photo is a plane in front of a pinhole camera. All amounts are relative to the frame, so the same move
rendered at another size shows the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from kornia.geometry.transform import warp_perspective
from torch import Tensor

from ..images import Fit, fit_frames
from ..progress import Report, silent

Easing = Literal["smooth", "linear"]

FOCAL_LENGTH = 2.0
"""In half frame heights; 2 is a vertical field of view of 53 degrees."""

SUPERSAMPLE = 2
"""Warps run at this multiple of the size, so that all frames are equally sharp and free of aliasing."""

SWAY_PERIODS = (53.0, 31.0, 19.0)
"""Periods of a hand-held sway in frames, slow to quick; the amplitude is proportional to the period."""


@dataclass(frozen=True)
class CameraMove:
    """Pose of the camera at the end of the clip; it starts with the whole photo in view.

    Attributes
    ----------
    pan_x, pan_y
        Movement to the right and down, in frame widths and heights.
    zoom
        Final magnification; 1 keeps the size, above 1 moves closer.
    rotate
        Roll in degrees, clockwise in the picture.
    tilt
        Pitch in degrees; positive looks up, which brings the top of the picture closer.
    sway
        Amplitude of a hand-held sway, in frame heights.
    easing
        ``"smooth"`` starts and stops gently, ``"linear"`` moves evenly.
    seed
        Seed of the path of the sway.
    """

    pan_x: float = 0.0
    pan_y: float = 0.0
    zoom: float = 1.0
    rotate: float = 0.0
    tilt: float = 0.0
    sway: float = 0.0
    easing: Easing = "smooth"
    seed: int = 0


def _smooth(time: float) -> float:
    return time * time * (3 - 2 * time)


def _linear(time: float) -> float:
    return time


EASINGS: dict[Easing, Callable[[float], float]] = {"smooth": _smooth, "linear": _linear}


def eased_steps(frames: int, easing: Easing) -> list[float]:
    """Return the progress of the camera move at every frame, 0 to 1."""
    return [EASINGS[easing](frame / max(1, frames - 1)) for frame in range(frames)]


def sway_path(frames: int, amplitude: float, seed: int) -> Tensor:
    """Return the hand-held offset of every frame, ``[frames, 2]`` (x, y), zero at frame 0.

    A sum of slow sines with seeded phases; the same seed gives the same path at any length.
    """
    phases = torch.rand(
        2, len(SWAY_PERIODS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    periods = torch.tensor(SWAY_PERIODS, dtype=torch.float64)
    strength = periods / periods.sum()
    time = torch.arange(frames, dtype=torch.float64)[:, None, None]
    swing = (torch.sin(2 * math.pi * (time / periods + phases)) * strength).sum(dim=-1)
    return amplitude * (swing - swing[:1])


def camera_homographies(frames: int, aspect: float, move: CameraMove) -> Tensor:
    """Return the move as homographies in centered frame coordinates.

    Parameters
    ----------
    frames
        Number of frames, at least 1.
    aspect
        Width over height of the frame.
    move
        The camera move.

    Returns
    -------
    Tensor
        ``[frames, 3, 3]`` float64; each maps a point of the photo to its position in the frame, with y
        from -1 (top) to 1 (bottom) and x from -aspect to aspect. Frame 0 has the identity.
    """
    sway = sway_path(frames, move.sway, move.seed).tolist()
    steps = eased_steps(frames, move.easing)
    return torch.stack(
        [_homography(step, aspect, move, *offset) for step, offset in zip(steps, sway, strict=True)]
    )


def _homography(step: float, aspect: float, move: CameraMove, sway_x: float, sway_y: float) -> Tensor:
    roll, pitch = math.radians(move.rotate * step), math.radians(move.tilt * step)
    zoom = move.zoom**step  # a constant ratio per frame looks like constant speed
    shift_x = -2 * aspect * move.pan_x * step - 2 * sway_x
    shift_y = -2 * move.pan_y * step - 2 * sway_y
    cos_r, sin_r, cos_p, sin_p = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
    lens = torch.diag(torch.tensor([FOCAL_LENGTH, FOCAL_LENGTH, 1.0], dtype=torch.float64))
    tilt = torch.tensor([[1, 0, 0], [0, cos_p, -sin_p], [0, sin_p, cos_p]], dtype=torch.float64)
    turn = torch.tensor([[cos_r, -sin_r, 0], [sin_r, cos_r, 0], [0, 0, 1]], dtype=torch.float64)
    place = torch.tensor([[zoom, 0, shift_x], [0, zoom, shift_y], [0, 0, 1]], dtype=torch.float64)
    homography: Tensor = place @ turn @ lens @ tilt @ torch.linalg.inv(lens)
    return homography


def pixels_to_frame(width: int, height: int) -> Tensor:
    """Return the ``[3, 3]`` float64 matrix from pixel centers to centered frame coordinates."""
    half = height / 2
    return torch.tensor(
        [[1 / half, 0, (0.5 - width / 2) / half], [0, 1 / half, (0.5 - half) / half], [0, 0, 1]],
        dtype=torch.float64,
    )


class _PhotoPyramid:
    """The photo at the sizes that a zoom needs; closer views sample larger versions."""

    def __init__(self, photo: Tensor, width: int, height: int, fit: Fit) -> None:
        self._photo, self._width, self._height, self._fit = photo, width, height, fit
        largest = max(photo.shape[1] / height, photo.shape[2] / width)
        self._max_doublings = max(0, math.ceil(math.log2(largest)))
        self._levels: dict[int, Tensor] = {}

    def for_zoom(self, zoom: float) -> Tensor:
        """Return the photo ``[1, 3, h, w]`` at about ``zoom`` times the size of the view."""
        doublings = min(self._max_doublings, max(0, round(math.log2(zoom))))
        if doublings not in self._levels:
            size = (self._width << doublings, self._height << doublings)
            self._levels[doublings] = fit_frames(self._photo, *size, self._fit).movedim(-1, 1)
        return self._levels[doublings]


def camera_motion(
    photo: Tensor,
    width: int,
    height: int,
    frames: int,
    move: CameraMove,
    fit: Fit = "crop",
    report: Report = silent,
) -> Tensor:
    """Render a camera move over a photo.

    Parameters
    ----------
    photo
        ``[1, H, W, C]`` float, 0..1; the full-size photo gives the sharpest zoom.
    width, height
        Size of the clip in pixels.
    frames
        Number of frames, at least 1.
    move
        The camera move. Where it leaves the photo, the photo is mirrored.
    fit
        Framing of the photo, see `images.fit_frames`.
    report
        Called after every frame.

    Returns
    -------
    Tensor
        ``[frames, height, width, 3]`` float32, 0..1; frame 0 is the photo unmoved.
    """
    zooms = [move.zoom**step for step in eased_steps(frames, move.easing)]
    homographies = camera_homographies(frames, width / height, move)
    clip = torch.empty(frames, height, width, 3, device=photo.device)
    for frame, view in enumerate(warped_views(photo, width, height, homographies, zooms, fit)):
        clip[frame] = view
        report(frame + 1)
    return clip


def warped_views(
    photo: Tensor, width: int, height: int, homographies: Tensor, zooms: Sequence[float], fit: Fit = "crop"
) -> Iterator[Tensor]:
    """Yield views of a photo under homographies, each as sharp as the photo allows.

    Parameters
    ----------
    photo, width, height, fit
        As in `camera_motion`.
    homographies
        ``[F, 3, 3]``, as `camera_homographies` gives them.
    zooms
        F approximate magnifications of the homographies; they choose the size of the photo to sample.

    Yields
    ------
    Tensor
        ``[height, width, 3]`` float32, 0..1. Where the view leaves the photo, the photo is mirrored.
    """
    view_width, view_height = width * SUPERSAMPLE, height * SUPERSAMPLE
    pyramid = _PhotoPyramid(photo, view_width, view_height, fit)
    to_view = torch.linalg.inv(pixels_to_frame(view_width, view_height))
    for homography, zoom in zip(homographies, zooms, strict=True):
        plane = pyramid.for_zoom(zoom)
        warp = to_view @ homography @ pixels_to_frame(plane.shape[3], plane.shape[2])
        view = warp_perspective(
            plane,
            warp[None].to(plane),
            (view_height, view_width),
            mode="bilinear",
            padding_mode="reflection",
        )
        yield F.avg_pool2d(view, SUPERSAMPLE)[0].movedim(0, -1).clamp_(0, 1)
