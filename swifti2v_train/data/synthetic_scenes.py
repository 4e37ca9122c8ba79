"""Clips rendered from photos: a camera move over a photo, and a piece of another photo moving in front.

Every frame is rendered from the photo itself at the size of Stage II, so it is as sharp as the photo
allows; averaged down, it is the truth for Stage I. Coordinates are those of
`camera.camera_homographies`: y from -1 (top) to 1 (bottom), x from -aspect to aspect.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from swifti2v_core.stage_one.camera import (
    CameraMove,
    Easing,
    camera_homographies,
    eased_steps,
    pixels_to_frame,
    warped_views,
)

KEPT_SHARE = 0.6
"""Probability of each kind of movement in a scene."""

FOREGROUND_SHARE = 0.5
"""Probability of a foreground in a scene."""

ROUNDNESS = 3.0
"""Exponent of the foreground's outline: 2 is an ellipse, larger values approach a rectangle."""

EASINGS: tuple[Easing, ...] = ("smooth", "linear")


@dataclass(frozen=True)
class Foreground:
    """A piece of another photo with a soft edge and its own motion.

    Attributes
    ----------
    source, center
        (x, y): the piece's center in the other photo, and its place in frame 0.
    radii
        Half its width and height.
    softness
        Width of the edge, relative to the radii.
    move
        Motion of the piece, as of a camera: `CameraMove.pan_x` and `pan_y` move the piece the other way.
    """

    source: tuple[float, float]
    center: tuple[float, float]
    radii: tuple[float, float]
    softness: float
    move: CameraMove


@dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes
    ----------
    zoom, offset
        Magnification of the photo at frame 0, at least 1, and the point (x, y) of the photo at its center.
    move
        The camera's move from there; the foreground is part of the scene and moves with it.
    foreground
        The piece in front, or None.
    """

    zoom: float
    offset: tuple[float, float]
    move: CameraMove
    foreground: Foreground | None = None


def draw_scene(seed: int, aspect: float, detail: float) -> Scene:
    """Draw a scene from a seed.

    Parameters
    ----------
    seed
        The same seed gives the same scene.
    aspect
        Width over height of the frame.
    detail
        Pixels of the photo per pixel of the frame, along one axis. The zoom never exceeds it, so the
        truth is sharp in every frame.
    """
    rng = random.Random(seed)
    most_zoom = max(1.0, detail)
    start_zoom = min(most_zoom, rng.uniform(1.1, 1.35))
    slack = 1 - 1 / start_zoom
    offset = (rng.uniform(-slack, slack) * aspect, rng.uniform(-slack, slack))
    move = _draw_move(rng, pan=0.12, zoom=1.2, turn=4.0, most_zoom=most_zoom / start_zoom)
    foreground = None
    if rng.random() < FOREGROUND_SHARE:
        nearest = most_zoom / max(1.0, move.zoom)
        foreground = _draw_foreground(rng, aspect, nearest)
    return Scene(start_zoom, offset, move, foreground)


def _draw_move(rng: random.Random, pan: float, zoom: float, turn: float, most_zoom: float) -> CameraMove:
    """Draw a move; the arguments are the largest amounts, and the zoom never exceeds ``most_zoom``."""

    def amount(largest: float) -> float:
        return rng.uniform(-largest, largest) if rng.random() < KEPT_SHARE else 0.0

    return CameraMove(
        pan_x=amount(pan),
        pan_y=amount(pan),
        zoom=min(most_zoom, zoom ** amount(1.0)),
        rotate=amount(turn),
        tilt=amount(turn),
        sway=abs(amount(0.012)),
        easing=rng.choice(EASINGS),
        seed=rng.randrange(2**31),
    )


def _draw_foreground(rng: random.Random, aspect: float, most_zoom: float) -> Foreground:
    radii = (rng.uniform(0.15, 0.45), rng.uniform(0.15, 0.45))
    # Inside the other photo, and at least partly inside the frame.
    source = (rng.uniform(-1, 1) * (aspect - radii[0]), rng.uniform(-1, 1) * (1 - radii[1]))
    center = (rng.uniform(-0.8, 0.8) * aspect, rng.uniform(-0.8, 0.8))
    move = _draw_move(rng, pan=0.3, zoom=1.15, turn=12.0, most_zoom=most_zoom)
    return Foreground(source, center, radii, rng.uniform(0.05, 0.2), move)


def scene_homographies(frames: int, aspect: float, scene: Scene) -> Tensor:
    """Return the homographies from the photo to every frame, ``[frames, 3, 3]`` float64."""
    return camera_homographies(frames, aspect, scene.move) @ _place((0, 0), scene.zoom, scene.offset)


def foreground_homographies(frames: int, aspect: float, scene: Scene, foreground: Foreground) -> Tensor:
    """Return the homographies from the foreground's photo to every frame, ``[frames, 3, 3]`` float64."""
    to_center = _place(foreground.center, 1.0, (0, 0))
    own = camera_homographies(frames, aspect, foreground.move) @ _place((0, 0), 1.0, foreground.source)
    return camera_homographies(frames, aspect, scene.move) @ to_center @ own


def _place(center: tuple[float, float], zoom: float, point: tuple[float, float]) -> Tensor:
    """Return the homography that moves ``point`` to ``center`` and magnifies around it."""
    (x, y), (to_x, to_y) = point, center
    rows = [[zoom, 0, to_x - zoom * x], [0, zoom, to_y - zoom * y], [0, 0, 1]]
    return torch.tensor(rows, dtype=torch.float64)


def render_scene(
    photo: Tensor, other: Tensor, width: int, height: int, frames: int, scene: Scene
) -> Tensor:
    """Render a scene at the size of Stage II.

    Parameters
    ----------
    photo, other
        ``[1, H, W, 3]`` float, 0..1, any size: the scene, and the photo that the foreground is cut from.
    width, height, frames
        Size of the clip.
    scene
        Content of the clip.

    Returns
    -------
    Tensor
        ``[frames, height, width, 3]`` float32, 0..1. Frame 0 is the photo that a user would start from.
    """
    aspect = width / height
    zooms = _zooms(frames, scene.zoom, scene.move)
    homographies = scene_homographies(frames, aspect, scene)
    clip = torch.stack([*warped_views(photo, width, height, homographies, zooms)])
    if scene.foreground is None:
        return clip
    moving, in_front = foreground_homographies(frames, aspect, scene, scene.foreground), scene.foreground
    own_zooms = _zooms(frames, 1.0, in_front.move)
    nearness = [
        camera * own for camera, own in zip(_zooms(frames, 1.0, scene.move), own_zooms, strict=True)
    ]
    views = warped_views(other, width, height, moving, nearness)
    for frame, (view, cover) in enumerate(
        zip(views, _covers(moving, width, height, in_front), strict=True)
    ):
        clip[frame].lerp_(view, cover[..., None].to(view))
    return clip


def _zooms(frames: int, start: float, move: CameraMove) -> list[float]:
    return [start * move.zoom**step for step in eased_steps(frames, move.easing)]


def _covers(homographies: Tensor, width: int, height: int, foreground: Foreground) -> Iterator[Tensor]:
    """Yield the foreground's coverage of every pixel, ``[height, width]`` in 0..1.

    Computed in the coordinates of the piece, so the edge has the same softness at any zoom and size.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack((columns, rows, torch.ones_like(rows)), dim=-1).double()
    to_frame = pixels_to_frame(width, height)
    middle, radii = torch.tensor([foreground.source, foreground.radii], dtype=torch.float64)
    for homography in homographies:
        points = pixels @ (torch.linalg.inv(homography) @ to_frame).T
        away = (points[..., :2] / points[..., 2:] - middle) / radii
        distance = away.abs().pow(ROUNDNESS).sum(dim=-1).pow(1 / ROUNDNESS)
        edge = ((1 - distance) / foreground.softness + 0.5).clamp_(0, 1)
        yield edge * edge * (3 - 2 * edge)


def average_down(clip: Tensor, width: int, height: int) -> Tensor:
    """Return a clip ``[F, H, W, 3]`` at a smaller size, each pixel the mean of the area it covers."""
    return F.interpolate(clip.movedim(-1, 1), (height, width), mode="area").movedim(1, -1).contiguous()
