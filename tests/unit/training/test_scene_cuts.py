"""Scene cuts in clips whose cuts are known."""

import numpy as np
import pytest
import torch
from synthetic_shots import shot

from swifti2v_train.data.scene_cuts import find_cuts


@pytest.mark.parametrize(
    "shots",
    [
        [(1, 12, 0), (2, 20, 0), (3, 9, 0)],
        [(1, 12, 4), (2, 20, 0), (3, 9, 8)],
        [(4, 30, 2), (5, 5, 2), (6, 30, 2)],
        [(7, 20, 24), (8, 20, 24)],  # fast pans on both sides
    ],
)
def test_cuts_are_found_where_they_are(shots):
    clip = torch.cat([shot(seed, frames, speed, noise=0.02) for seed, frames, speed in shots])
    ends = np.cumsum([frames for _, frames, _ in shots])
    assert find_cuts(clip) == ends[:-1].tolist()


def test_a_cut_between_shots_of_the_same_colors_is_found():
    upright = shot(15, 20, noise=0.02)
    assert find_cuts(torch.cat((upright, upright.flip(2)))) == [20]


@pytest.mark.parametrize("speed", [0, 1, 6, 16, 32])
def test_a_pan_of_any_speed_is_no_cut(speed):
    assert find_cuts(shot(11, 40, speed, noise=0.02)) == []
    start_and_stop = torch.cat((shot(11, 12), shot(11, 20, speed), shot(11, 1, 0)))
    assert find_cuts(start_and_stop[:32]) == []


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("light", [0.0, 6.0])
def test_a_flash_is_no_cut(length, light):
    def flash(frame):
        return light if 15 <= frame < 15 + length else 1.0

    assert find_cuts(shot(12, 40, 2, noise=0.02, light=flash)) == []
    with_cut = torch.cat((shot(12, 40, 2, light=flash), shot(13, 20, 2)))
    assert find_cuts(with_cut) == [40]


def test_a_slow_change_of_light_is_no_cut():
    assert find_cuts(shot(14, 40, 1, light=lambda frame: 0.3 + frame / 40)) == []
