"""Clips of photos with known truth: a camera move over a photo, and a piece of another one moving in it.

Every frame is rendered from the photo itself at the size of Stage II, so it is as sharp as the photo
allows; what Stage I would have seen is the same frame averaged down. Coordinates are those of
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
"""How often each kind of movement is part of a scene."""

FOREGROUND_SHARE = 0.5
"""How often something moves in front."""

ROUNDNESS = 3.0
"""Exponent of the foreground's outline: 2 is an ellipse, more is nearer to a rectangle."""

EASINGS: tuple[Easing, ...] = ("smooth", "linear")


@dataclass(frozen=True)
class Foreground:
    """A piece of another photo with a soft edge and a motion of its own.

    Attributes
    ----------
    source, center
        (x, y): the middle of the piece in the other photo, and where it is at frame 0.
    radii
        Half its width and height.
    softness
        Width of the edge, relative to the radii.
    move
        How the piece moves; `CameraMove.pan_x` and `pan_y` move it the other way, as a camera would.
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
        Magnification of the photo at frame 0, at least 1, and the point (x, y) of it in the middle.
    move
        The camera's way from there; the foreground is in the scene and moves with it.
    foreground
        What moves in front, or None.
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
        Pixels of the photo per pixel of the frame, in one direction. The view never gets nearer than
        that, so that the truth is sharp at every frame.
    """
    chance = random.Random(seed)
    most_zoom = max(1.0, detail)
    start_zoom = min(most_zoom, chance.uniform(1.1, 1.35))
    slack = 1 - 1 / start_zoom
    offset = (chance.uniform(-slack, slack) * aspect, chance.uniform(-slack, slack))
    move = _draw_move(chance, pan=0.12, zoom=1.2, turn=4.0, most_zoom=most_zoom / start_zoom)
    foreground = None
    if chance.random() < FOREGROUND_SHARE:
        nearest = most_zoom / max(1.0, move.zoom)
        foreground = _draw_foreground(chance, aspect, nearest)
    return Scene(start_zoom, offset, move, foreground)


def _draw_move(chance: random.Random, pan: float, zoom: float, turn: float, most_zoom: float) -> CameraMove:
    """Draw a move; the arguments are the largest amounts, and `most_zoom` is never exceeded."""

    def amount(largest: float) -> float:
        return chance.uniform(-largest, largest) if chance.random() < KEPT_SHARE else 0.0

    return CameraMove(
        pan_x=amount(pan),
        pan_y=amount(pan),
        zoom=min(most_zoom, zoom ** amount(1.0)),
        rotate=amount(turn),
        tilt=amount(turn),
        sway=abs(amount(0.012)),
        easing=chance.choice(EASINGS),
        seed=chance.randrange(2**31),
    )


def _draw_foreground(chance: random.Random, aspect: float, most_zoom: float) -> Foreground:
    radii = (chance.uniform(0.15, 0.45), chance.uniform(0.15, 0.45))
    # Inside the other photo, and not all of it outside the frame.
    source = (chance.uniform(-1, 1) * (aspect - radii[0]), chance.uniform(-1, 1) * (1 - radii[1]))
    center = (chance.uniform(-0.8, 0.8) * aspect, chance.uniform(-0.8, 0.8))
    move = _draw_move(chance, pan=0.3, zoom=1.15, turn=12.0, most_zoom=most_zoom)
    return Foreground(source, center, radii, chance.uniform(0.05, 0.2), move)


def scene_homographies(frames: int, aspect: float, scene: Scene) -> Tensor:
    """Return where points of the photo are at every frame, ``[frames, 3, 3]`` float64."""
    return camera_homographies(frames, aspect, scene.move) @ _place((0, 0), scene.zoom, scene.offset)


def foreground_homographies(frames: int, aspect: float, scene: Scene, foreground: Foreground) -> Tensor:
    """Return where points of the foreground's photo are at every frame, ``[frames, 3, 3]`` float64."""
    to_center = _place(foreground.center, 1.0, (0, 0))
    own = camera_homographies(frames, aspect, foreground.move) @ _place((0, 0), 1.0, foreground.source)
    return camera_homographies(frames, aspect, scene.move) @ to_center @ own


def _place(center: tuple[float, float], zoom: float, point: tuple[float, float]) -> Tensor:
    """Return the homography that brings ``point`` to ``center``, magnified."""
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
        ``[1, H, W, 3]`` float, 0..1, any size: the scene, and where the foreground is cut out.
    width, height, frames
        Size of the clip.
    scene
        What it shows.

    Returns
    -------
    Tensor
        ``[frames, height, width, 3]`` float32, 0..1. Frame 0 is the photo that a user would give.
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
    """Yield how much of every pixel the foreground covers, ``[height, width]`` in 0..1.

    Computed where the pixel lies on the piece, so that the edge is as sharp at any zoom and size.
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
    """Return a clip ``[F, H, W, 3]`` at a smaller size; every pixel is the mean of the area it covers."""
    return F.interpolate(clip.movedim(-1, 1), (height, width), mode="area").movedim(1, -1).contiguous()
