import math

import pytest
import torch
import torch.nn.functional as F

from swifti2v_core.stage_one.camera import CameraMove, camera_homographies, camera_motion, sway_path


def smooth_photo(height=180, width=320):
    noise = torch.rand(1, 3, 6, 10, generator=torch.Generator().manual_seed(3))
    return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


def test_frame_zero_is_the_photo_at_rest():
    move = CameraMove(0.2, 0.1, 1.5, 10, 10, 0.05)
    clip = camera_motion(smooth_photo(), 320, 180, 3, move)
    assert (clip[0] - smooth_photo()[0]).abs().max() < 4e-3
    at_rest = camera_homographies(3, 1.5, move)[0]
    assert torch.allclose(at_rest, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_a_pan_moves_the_picture_the_other_way_by_the_right_distance():
    photo = smooth_photo()
    clip = camera_motion(photo, 320, 180, 2, CameraMove(pan_x=0.25, pan_y=-0.1))
    moved = clip[1]
    # The camera goes right by 80 pixels and up by 18: what was there is now at the same place.
    assert (moved[18:, : 320 - 80] - photo[0, : 180 - 18, 80:]).abs().max() < 5e-3


def test_a_zoom_enlarges_the_center():
    photo = smooth_photo()
    clip = camera_motion(photo, 320, 180, 2, CameraMove(zoom=2.0))
    center = photo[:, 45:135, 80:240].movedim(-1, 1)
    expected = F.interpolate(center, (180, 320), mode="bilinear", align_corners=False)
    inner = (clip[1] - expected[0].movedim(0, -1)).abs()[4:-4, 4:-4]
    assert inner.max() < 1e-2


def test_a_quarter_turn_is_clockwise():
    photo = smooth_photo(160, 160)
    clip = camera_motion(photo, 160, 160, 2, CameraMove(rotate=90))
    assert (clip[1] - photo[0].rot90(-1)).abs().max() < 5e-3


def test_tilt_brings_the_top_nearer():
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]], dtype=torch.float64)
    mapped = corners @ camera_homographies(2, 1.0, CameraMove(tilt=20))[1].T
    mapped = mapped / mapped[:, 2:]
    assert mapped[1, 0] - mapped[0, 0] > 2 > mapped[3, 0] - mapped[2, 0]


def test_the_same_move_shows_the_same_picture_at_another_size():
    # The move stays inside the photo: mirrored borders differ by up to a pixel between sizes.
    photo, move = smooth_photo(720, 1280), CameraMove(0.03, 0.02, 1.4, 4, 5, 0.01)
    small = camera_motion(photo, 160, 96, 4, move)
    large = camera_motion(photo, 320, 192, 4, move)
    halved = F.avg_pool2d(large.movedim(-1, 1), 2).movedim(1, -1)
    assert (small - halved).abs().max() < 5e-3


def test_borders_are_mirrored_not_black():
    clip = camera_motion(torch.full((1, 64, 64, 3), 0.7), 64, 64, 3, CameraMove(0.4, 0.4, 0.6, 30))
    assert (clip - 0.7).abs().max() < 1e-5


def test_easing_and_sway():
    linear = camera_homographies(5, 1.0, CameraMove(pan_x=0.5, easing="linear"))[:, 0, 2]
    smooth = camera_homographies(5, 1.0, CameraMove(pan_x=0.5))[:, 0, 2]
    assert linear.tolist() == pytest.approx([0, -0.25, -0.5, -0.75, -1.0])
    assert smooth.tolist() == pytest.approx([0, -0.15625, -0.5, -0.84375, -1.0])
    path = sway_path(80, 0.02, 7)
    assert torch.equal(path, sway_path(80, 0.02, 7))
    assert not torch.equal(path, sway_path(80, 0.02, 8))
    assert torch.equal(path[:20], sway_path(20, 0.02, 7))
    assert path[0].abs().max() == 0 and 0.002 < path.abs().max() <= 0.04
    assert math.isclose(float(sway_path(9, 0.0, 1).abs().max()), 0.0)


def test_a_zoom_takes_its_detail_from_the_full_size_photo():
    fine = torch.zeros(1, 512, 512, 3)
    fine[:, ::2] = 1.0  # lines that only the full size shows
    fine = F.interpolate(fine.movedim(-1, 1), (1024, 1024)).movedim(1, -1)  # two pixels each
    zoomed = camera_motion(fine, 64, 64, 2, CameraMove(zoom=8.0))
    assert zoomed[1, 8:-8, 8:-8].std() > 0.3
    assert zoomed[0, 8:-8, 8:-8].std() < 0.05
    half = camera_motion(fine.half(), 64, 64, 2, CameraMove(zoom=8.0))
    assert half.dtype == torch.float32 and (half - zoomed).abs().max() < 5e-3
