"""Synthetic clips: known points land where arithmetic by hand says."""

import math

import pytest
import torch

from swifti2v_core.stage_one.camera import CameraMove
from swifti2v_train.data.synthetic_scenes import Foreground, Scene, average_down, draw_scene, render_scene

WIDTH, HEIGHT, FRAMES = 192, 96, 5
MOVE = CameraMove(pan_x=0.08, pan_y=-0.05, zoom=1.2, rotate=7.0, tilt=5.0, easing="linear")
OTHER_MOVE = CameraMove(pan_x=-0.1, pan_y=0.04, zoom=0.9, rotate=-10.0, easing="linear")


def dot_photo(x, y, width=768, height=384, level=0.0):
    """A photo with one soft dot at pixel (x, y)."""
    columns, rows = torch.arange(width), torch.arange(height)[:, None]
    dot = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 9.0**2))
    return (level + (1 - level) * dot)[None, ..., None].expand(1, -1, -1, 3)


def moved(x, y, move, step):
    """Where the camera shows a point of the frame at a moment, written out in plain trigonometry."""
    pitch, roll = math.radians(move.tilt * step), math.radians(move.rotate * step)
    depth = y / 2 * math.sin(pitch) + math.cos(pitch)  # of a plane at distance 1, focal length 2
    x, y = x / depth, 2 * (y / 2 * math.cos(pitch) - math.sin(pitch)) / depth
    x, y = x * math.cos(roll) - y * math.sin(roll), x * math.sin(roll) + y * math.cos(roll)
    zoom, aspect = move.zoom**step, WIDTH / HEIGHT
    return zoom * x - 2 * aspect * move.pan_x * step, zoom * y - 2 * move.pan_y * step


def centroid(frame):
    weight = frame[..., 0].double()
    rows, columns = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)
    return float((weight * columns).sum() / weight.sum()), float((weight * rows).sum() / weight.sum())


def to_pixels(x, y):
    return x * HEIGHT / 2 + WIDTH / 2 - 0.5, y * HEIGHT / 2 + HEIGHT / 2 - 0.5


def test_a_point_of_the_photo_lands_where_arithmetic_says():
    scene = Scene(zoom=1.25, offset=(0.1, -0.05), move=MOVE)
    clip = render_scene(dot_photo(440, 150), dot_photo(0, 0), WIDTH, HEIGHT, FRAMES, scene)
    x, y = (440.5 - 384) / 192, (150.5 - 192) / 192  # in halves of the photo's height
    for frame in range(FRAMES):
        at = moved(1.25 * (x - 0.1), 1.25 * (y + 0.05), MOVE, frame / 4)
        assert centroid(clip[frame]) == pytest.approx(to_pixels(*at), abs=0.1)


def test_a_point_of_the_foreground_moves_by_itself_and_with_the_camera():
    piece = Foreground((0.4, 0.1), (-0.3, 0.2), (0.5, 0.5), 0.1, OTHER_MOVE)
    scene = Scene(1.0, (0.0, 0.0), MOVE, piece)
    other = dot_photo(384 + 192 * 0.5 - 0.5, 192 + 192 * 0.05 - 0.5)  # the point (0.5, 0.05)
    clip = render_scene(torch.zeros(1, 384, 768, 3), other, WIDTH, HEIGHT, FRAMES, scene)
    for frame in range(FRAMES):
        x, y = moved(0.1, -0.05, OTHER_MOVE, frame / 4)  # from the middle of the piece
        at = moved(x - 0.3, y + 0.2, MOVE, frame / 4)
        assert centroid(clip[frame]) == pytest.approx(to_pixels(*at), abs=0.1)


def test_the_foreground_has_its_size_and_a_soft_edge():
    piece = Foreground((0.0, 0.0), (0.25, -0.25), (0.5, 0.25), 0.2, CameraMove())
    scene = Scene(1.0, (0.0, 0.0), CameraMove(), piece)
    black, white = torch.zeros(1, 96, 192, 3), torch.ones(1, 96, 192, 3)
    cover = render_scene(black, white, WIDTH, HEIGHT, 1, scene)[0, ..., 0]
    row = cover[int(0.75 * HEIGHT / 2)]  # through the middle, y = -0.25
    assert row[:80].max() == 0 and row[98:118].min() == 1 and row[136:].max() == 0
    assert float(row.sum()) == pytest.approx(2 * 0.5 * HEIGHT / 2, abs=0.5)  # half covered at the radius
    assert ((row > 0.05) & (row < 0.95)).sum() >= 4
    assert torch.equal(cover[:, 0], torch.zeros(HEIGHT)) and float(cover[50:].max()) == 0


def test_frame_zero_is_the_part_of_the_photo_that_the_scene_starts_with():
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, HEIGHT * 2, WIDTH * 2, 3, generator=generator)
    scene = Scene(2.0, (-1.0, -0.5), MOVE)  # the upper left quarter
    first = render_scene(photo, photo, WIDTH, HEIGHT, 1, scene)[0]
    assert (first - photo[0, :HEIGHT, :WIDTH]).abs().mean() < 0.12  # one pixel of the photo per pixel
    shifted = photo[0, 4 : HEIGHT + 4, 4 : WIDTH + 4]
    assert (first - shifted).abs().mean() > 0.25


def test_every_frame_is_as_sharp_as_the_photo_allows():
    stripes = ((torch.arange(768) // 4) % 2).float()[None, None, :, None].expand(1, 384, 768, 3)
    scene = Scene(1.0, (0.0, 0.0), CameraMove(zoom=4.0, easing="linear"))
    clip = render_scene(stripes, stripes, WIDTH, HEIGHT, 3, scene)
    # Four times nearer a stripe of four photo pixels is four pixels wide: black and white, no gray.
    assert clip[2, 20:-20, 20:-20].std() > 0.43


@pytest.mark.parametrize("detail", [0.5, 1.0, 3.0])
def test_scenes_come_from_the_seed_and_stay_within_the_detail(detail):
    scenes = [draw_scene(seed, 2.0, detail) for seed in range(200)]
    assert scenes == [draw_scene(seed, 2.0, detail) for seed in range(200)]
    assert len({scene.move for scene in scenes}) == 200
    for scene in scenes:
        nearest = scene.zoom * max(1.0, scene.move.zoom)
        assert nearest <= max(1.0, detail) + 1e-9
        # The part shown at frame 0 lies within the photo.
        assert abs(scene.offset[0]) + 2.0 / scene.zoom <= 2.0 + 1e-9
        assert abs(scene.offset[1]) + 1.0 / scene.zoom <= 1.0 + 1e-9
        if scene.foreground:
            assert (
                max(1.0, scene.foreground.move.zoom) * max(1.0, scene.move.zoom) <= max(1.0, detail) + 1e-9
            )
    kinds = ("pan_x", "pan_y", "rotate", "tilt", "sway")
    assert all(60 < sum(getattr(scene.move, kind) != 0 for scene in scenes) < 180 for kind in kinds)
    assert 60 < sum(scene.foreground is not None for scene in scenes) < 140


def test_low_resolution_is_the_mean_of_areas():
    clip = torch.rand(2, 8, 16, 3, generator=torch.Generator().manual_seed(1))
    small = average_down(clip, 4, 2)
    assert torch.allclose(small[1, 1, 2], clip[1, 4:8, 8:12].mean(dim=(0, 1)), atol=1e-6)
