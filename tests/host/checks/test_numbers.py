"""Clips that no memory holds."""

import pytest
import torch
from refusals import sentence_of
from swifti2v.nodes.checks import numbers


@pytest.mark.parametrize(
    ("size", "takes", "nearest"),
    [
        ((640, 352, 4001), "Frames of 640x352, 4001 of them, take 10.1 GiB", "number of frames is 397"),
        ((4096, 4096, 9), "Frames of 4096x4096, 9 of them, take 1.7 GiB", "number of frames is 5"),
        ((16384, 16384, 4001), "Frames of 16384x16384, 4001 of them, take 12003.0 GiB", "size is 128x128"),
    ],
)
def test_clips_that_no_memory_holds(run, small_machine, size, takes, nearest):
    width, height, frames = size
    options = {"image": torch.rand(1, 32, 32, 3), "width": width, "height": height}
    sentence = sentence_of(run, "SwiftI2V_CameraMotion", **options, frames=frames)
    assert sentence == f"{takes} of memory, but this machine has 1.0 GiB; the nearest valid {nearest}."


def test_the_nearest_that_fits_does_fit(pack, small_machine):
    numbers.check_frames_fit_memory(1, 397, 640, 352)
    with pytest.raises(ValueError, match="Frames of 640x352, 401 of them, take"):
        numbers.check_frames_fit_memory(1, 401, 640, 352)
    numbers.check_frames_fit_memory(1, 4001, 128, 128)
    with pytest.raises(ValueError, match="Frames of 160x160, 4001 of them"):
        numbers.check_frames_fit_memory(1, 4001, 160, 160)
