"""Widgets with values of another kind or out of range, and what is too large to exist."""

import math

import numpy as np
import pytest
import torch
from swifti2v.nodes.checks import numbers
from swifti2v.nodes.comfyui import memory

CAMERA = {"image": torch.rand(1, 32, 32, 3), "width": 32, "height": 32, "frames": 5}


def said(run, node_id, **inputs):
    with pytest.raises(ValueError) as error:
        run(node_id, **inputs)
    return str(error.value)


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
def test_widgets(run, change, sentence):
    assert said(run, "SwiftI2V_CameraMotion", **{**CAMERA, **change}) == sentence


def test_numbers_of_numpy_are_numbers(run):
    usual = run("SwiftI2V_CameraMotion", **CAMERA, zoom=1.5, seed=3)[0]
    given = {**CAMERA, "frames": np.int64(5), "zoom": np.float32(1.5), "seed": np.uint64(3)}
    assert torch.equal(usual, run("SwiftI2V_CameraMotion", **given)[0])


def test_switches_and_texts(run, stage_two, z_ref):
    options = {"image": CAMERA["image"], "motion": torch.rand(5, 32, 32, 3), "vae": None}
    assert said(run, "SwiftI2V_AnchorEncode", **options, color_match=1).startswith(
        "color_match is 1, but must be True or False; the nearest valid value is False."
    )
    many = ", ".join(str(1000 - step / 2) for step in range(1001))
    sentence = said(run, "SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, timesteps=many)
    assert sentence.startswith('timesteps is "1000.0, 999.5, 999.0,')
    assert sentence.endswith('...", 1001 numbers, but a schedule has at most 1000 steps; leave some out.')


@pytest.fixture
def small_machine(pack, monkeypatch):
    """A machine of 1 GiB."""
    monkeypatch.setattr(memory, "total_bytes", lambda device: 2**30)


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
    options = {"image": CAMERA["image"], "width": width, "height": height}
    sentence = said(run, "SwiftI2V_CameraMotion", **options, frames=frames)
    assert sentence == f"{takes} of memory, but this machine has 1.0 GiB; the nearest valid {nearest}."


def test_the_nearest_that_fits_does_fit(pack, small_machine):
    numbers.check_frames_fit_memory(1, 397, 640, 352)
    with pytest.raises(ValueError, match="Frames of 640x352, 401 of them, take"):
        numbers.check_frames_fit_memory(1, 401, 640, 352)
    numbers.check_frames_fit_memory(1, 4001, 128, 128)
    with pytest.raises(ValueError, match="Frames of 160x160, 4001 of them"):
        numbers.check_frames_fit_memory(1, 4001, 160, 160)


def test_an_expanded_latent_is_as_large_as_its_shape(run, small_machine, vae):
    samples = torch.zeros(1, 48, 1, 1, 1).expand(1, 48, 10**6, 88, 160)
    sentence = said(run, "SwiftI2V_TiledVAEDecode", samples={"samples": samples}, vae=vae)
    assert "samples with 1000000 latent frames" in sentence and "this machine has 1.0 GiB" in sentence
    assert sentence.endswith(
        f"the nearest valid number of latent frames is {2**30 // (3 * 4 * 48 * 88 * 160)}."
    )


def test_black_bars_that_no_memory_holds(run, small_machine, vae):
    options = {"vae": vae, "width": 32, "height": 32, "frames": 5, "fit": "pad"}
    photo, motion = torch.rand(1, 16384, 1, 3), torch.rand(5, 16, 64, 3)
    sentence = said(run, "SwiftI2V_AnchorEncode", image=photo, motion=motion, **options)
    assert sentence.startswith("Frames of 65536x16384, 1 of them, take 12.0 GiB of memory")


@pytest.mark.parametrize(
    ("codec", "cells", "nearest"),
    [
        ("av1", (1, 40), "64x640"),
        ("av1", (40, 3), "640x64"),
        ("h264", (1025, 1), "16384x16"),
        ("vp9", (1, 1025), "16x16384"),
    ],
)
def test_sizes_that_a_codec_cannot_write(run, vae, codec, cells, nearest):
    width, height = cells
    samples = {"samples": torch.zeros(1, 48, 2, height, width)}
    sentence = said(run, "SwiftI2V_DecodeToVideo", samples=samples, vae=vae, codec=codec)
    assert f"The clip is {16 * width}x{16 * height}, but the encoder" in sentence
    assert sentence.endswith(f"; the nearest valid size is {nearest}, or choose another codec.")


def test_values_that_no_image_or_latent_has(run, vae):
    counted = said(run, "SwiftI2V_CameraMotion", **{**CAMERA, "image": 255 * torch.ones(1, 32, 32, 3)})
    assert counted == (
        "The photo holds values from 255 to 255, but an IMAGE goes from 0 to 1; divide it by 255 if it "
        "counts to 255."
    )
    samples = {"samples": torch.full((1, 48, 2, 2, 2), -1e38)}
    sentence = said(run, "SwiftI2V_TiledVAEDecode", samples=samples, vae=vae)
    assert sentence.startswith(
        "samples holds values from -1e+38 to -1e+38, but those of a latent are about"
    )
