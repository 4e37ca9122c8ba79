"""Widgets with values of another kind, out of range or off their grid."""

import math

import numpy as np
import pytest
import torch
from refusals import SIZED, case, sentence_of

CAMERA = {"image": torch.rand(1, 32, 32, 3), "width": 32, "height": 32, "frames": 5}

GRIDS = [
    *(
        case(
            node,
            f"{width}x{height}",
            "must be multiples of",  # of 16 for Stage I as long as the model does not matter
            f"nearest valid size is {near}",
            width=width,
            height=height,
        )
        for node in SIZED
        for width, height, near in (
            (130, 96, "128x96"),
            (128, 100, "128x96"),
            (112, 80, "128x96"),
        )
    ),
    # A14B takes multiples of 16.
    case(
        "SwiftI2V_MotionSampler",
        "648x352",
        "multiples of 16",
        "nearest valid size is 656x352",
        model_high_noise=lambda kit: kit.wan(36, 16),
        vae=lambda kit: kit.wan21_vae,
        width=648,
        height=352,
    ),
    *(
        case(
            node,
            f"has {frames} frames",
            "4n+1 and at least 5",
            f"nearest valid number is {near}",
            frames=frames,
        )
        for node in SIZED
        for frames, near in ((80, 81), (82, 81))
    ),
    case(
        "SwiftI2V_TemporalWindows",
        "window_frames is 5",
        "must be even and at least 2",
        "nearest valid value is 6",
        window_frames=5,
    ),
    case("SwiftI2V_DecodeToVideo", "crf is 52", "h264 knows 0 to 51", "nearest valid value is 51", crf=52),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), GRIDS)
def test_values_off_their_grid_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"frames": 4005},
            "frames is 4005, but must be from 5 to 4001; the nearest valid value is 4001.",
        ),
        (
            {"frames": 8.6},
            "frames is 8.6, but must be a whole number from 5 to 4001; the nearest valid value is 9.",
        ),
        (
            {"frames": True},
            "frames is True, but must be a whole number from 5 to 4001; the nearest valid value is 81.",
        ),
        (
            {"seed": -1},
            "seed is -1, but must be from 0 to 18446744073709551615; the nearest valid value is 0.",
        ),
        (
            {"zoom": math.nan},
            "zoom is nan, but must be from 0.25 to 4; the nearest valid value is 1.15.",
        ),
        (
            {"zoom": math.inf},
            "zoom is inf, but must be from 0.25 to 4; the nearest valid value is 4.",
        ),
        (
            {"zoom": "1.5"},
            'zoom is "1.5", but must be a number from 0.25 to 4; the nearest valid value is 1.15.',
        ),
        (
            {"pan_x": None},
            "pan_x is None, but must be a number from -1 to 1; the nearest valid value is 0.05.",
        ),
        (
            {"easing": "smoth"},
            'easing is "smoth", but must be an entry of its list; the nearest valid value is "smooth".',
        ),
        ({"fit": 3}, 'fit is 3, but must be an entry of its list; the nearest valid value is "pad".'),
    ],
)
def test_bad_widget_values_are_refused(run, change, sentence):
    assert sentence_of(run, "SwiftI2V_CameraMotion", **{**CAMERA, **change}) == sentence


def test_numbers_of_numpy_are_numbers(run):
    usual = run("SwiftI2V_CameraMotion", **CAMERA, zoom=1.5, seed=3)[0]
    given = {**CAMERA, "frames": np.int64(5), "zoom": np.float32(1.5), "seed": np.uint64(3)}
    assert torch.equal(usual, run("SwiftI2V_CameraMotion", **given)[0])


def test_switches_and_texts(run, stage_two, z_ref):
    options = {"image": CAMERA["image"], "motion": torch.rand(5, 32, 32, 3), "vae": None}
    assert sentence_of(run, "SwiftI2V_AnchorEncode", **options, color_match=1).startswith(
        "color_match is 1, but must be True or False; the nearest valid value is False."
    )
    many = ", ".join(str(1000 - step / 2) for step in range(1001))
    sentence = sentence_of(run, "SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, timesteps=many)
    assert sentence.startswith('timesteps is "1000.0, 999.5, 999.0,')
    assert sentence.endswith('...", 1001 numbers, but a schedule has at most 1000 steps; leave some out.')
