"""Latent statistics of later frames brought back to the first segment's offset from the reference."""

import math

import pytest
import torch

from swifti2v_core.stage_two.drift_control import (
    TOLERANCE,
    check_drift_control,
    low_pass_statistics,
    match_statistics,
    measure_offset,
)

SHAPE = 2, 3, 4, 8, 12


@pytest.fixture
def reference():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def per_channel(*values):
    return torch.tensor(values).view(1, 3, 1, 1, 1)


def test_statistics_are_those_of_areas_of_four_by_four():
    frame = torch.zeros(1, 1, 1, 8, 8)
    frame[..., :4, :4] = 4.0
    frame[..., 4:, 4:] = torch.tensor([1.0, -1.0]).repeat(8).view(4, 4)  # fine detail, mean 0
    mean, deviation = low_pass_statistics(frame)
    assert mean.shape == deviation.shape == (1, 1, 1, 1, 1)
    assert mean.item() == 1.0  # of 4, 0, 0, 0
    assert deviation.item() == pytest.approx(math.sqrt(3))


def test_smaller_areas_at_the_border_are_averaged_by_themselves():
    frame = torch.zeros(1, 1, 1, 4, 6)
    frame[..., 4:] = 3.0
    mean, deviation = low_pass_statistics(frame)
    assert (mean.item(), deviation.item()) == (1.5, 1.5)


def tolerated(value, tolerance):
    """Return what drift control leaves of a difference at strength 1."""
    return value.clamp(-tolerance, tolerance)


@pytest.fixture
def no_offset(reference):
    return measure_offset(reference, reference)


def test_an_offset_is_that_of_means_and_contrasts(reference):
    mean, _ = low_pass_statistics(reference)
    scale, shift = per_channel(1.25, 0.8, 1.9), per_channel(0.5, -0.2, 1.0)
    offset = measure_offset((reference - mean) * scale + mean + shift, reference)
    assert (offset.contrast + scale.log()).abs().max() <= 1e-5
    assert (offset.brightness + shift).abs().max() <= 1e-5
    over_time = offset.mean()
    assert over_time.contrast.shape == over_time.brightness.shape == (2, 3, 1, 1, 1)
    assert (over_time.brightness + shift).abs().max() <= 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_a_shift_comes_back_up_to_the_tolerance(reference, no_offset, strength):
    shift = per_channel(0.5, -0.2, 1.0)
    _, spread = low_pass_statistics(reference)
    left = tolerated(shift, TOLERANCE * spread)
    result = match_statistics(reference + shift, reference, no_offset, strength)
    expected = reference + shift + strength * (left - shift)
    assert (result - expected).abs().max() <= 1e-5
    assert (left - shift).abs().amax(dim=(0, 2, 3, 4)).tolist() == pytest.approx(
        [0.46, 0.16, 0.96], abs=0.03
    )


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_contrast_comes_back_up_to_the_tolerance(reference, no_offset, strength):
    mean, _ = low_pass_statistics(reference)
    scale = per_channel(1.5, 0.5, 1.9)
    result = match_statistics((reference - mean) * scale + mean, reference, no_offset, strength)
    kept = tolerated(scale.log(), torch.tensor(TOLERANCE)).exp()
    gain = 1 + strength * (kept / scale - 1)
    assert (result - ((reference - mean) * scale * gain + mean)).abs().max() <= 1e-5


def test_the_first_segments_own_offset_is_no_drift(reference):
    """A sharp clip has other statistics than its soft reference, from the first segment on."""
    mean, _ = low_pass_statistics(reference)
    sharp = (reference - mean) * per_channel(1.4, 0.6, 1.0) + mean + per_channel(0.0, 2.0, -3.0)
    first = measure_offset(sharp[:, :, :2], reference[:, :, :2])
    kept = match_statistics(sharp[:, :, 2:], reference[:, :, 2:], first, 1.0)
    assert torch.equal(kept, sharp[:, :, 2:])
    drifted = sharp[:, :, 2:] + 5.0
    _, spread = low_pass_statistics(reference[:, :, 2:])
    back = match_statistics(drifted, reference[:, :, 2:], first, 1.0)
    assert (back - sharp[:, :, 2:] - TOLERANCE * spread).abs().max() <= 1e-4


def test_every_frame_is_compared_with_its_own_reference(reference, no_offset):
    """A change of light in the reference stays, and a motion does not smear."""
    light = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1, 1)
    moved = (reference + light).roll(4, dims=4)
    assert torch.equal(match_statistics(moved, reference + light, no_offset, 1.0), moved)
    _, spread = low_pass_statistics(reference)
    result = match_statistics(moved + 0.7, reference + light, no_offset, 1.0)
    assert (result - moved - TOLERANCE * spread).abs().max() <= 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_frames_within_the_tolerance_keep_their_bits(reference, no_offset, strength):
    assert torch.equal(match_statistics(reference, reference, no_offset, strength), reference)
    mean, _ = low_pass_statistics(reference)
    near = (reference - mean) * 1.15 + mean
    assert torch.equal(match_statistics(near, reference, no_offset, strength), near)
    half = reference.to(torch.bfloat16)
    assert torch.equal(match_statistics(half, half, measure_offset(half, half), strength), half)


def test_fine_detail_is_neither_measured_nor_removed(reference, no_offset):
    checker = torch.tensor([1.0, -1.0]).repeat(6) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    result = match_statistics(reference + 9 * checker, reference, no_offset, 1.0)
    assert (result - (reference + 9 * checker)).abs().max() <= 1e-4


def test_channels_without_contrast_are_moved_and_not_scaled(reference, no_offset):
    flat = torch.full(SHAPE, 2.0)
    assert torch.equal(match_statistics(flat, torch.zeros(SHAPE), no_offset, 1.0), torch.zeros(SHAPE))
    mean, spread = low_pass_statistics(reference)
    expected = mean + tolerated(2 - mean, TOLERANCE * spread)
    assert (match_statistics(flat, reference, no_offset, 1.0) - expected).abs().max() <= 1e-5
    single = torch.ones(1, 3, 4, 2, 2)
    offset = measure_offset(single, single)
    assert torch.isfinite(match_statistics(single, single * 0, offset, 0.5)).all()


def test_contrast_is_corrected_by_two_at_most(reference, no_offset):
    _, before = low_pass_statistics(reference)
    for scale, expected in ((10.0, 5.0), (0.1, 0.2)):
        drifted = reference * scale
        _, after = low_pass_statistics(match_statistics(drifted, reference, no_offset, 1.0))
        assert torch.allclose(after / before, torch.full_like(after, expected), rtol=1e-4)


def test_inputs_stay_and_0_hands_the_frames_through(reference, no_offset):
    frames = reference * 1.5 + 0.3
    copies = frames.clone(), reference.clone()
    match_statistics(frames, reference, no_offset, 0.7)
    assert torch.equal(frames, copies[0]) and torch.equal(reference, copies[1])
    assert match_statistics(frames, reference, no_offset, 0) is frames


@pytest.mark.parametrize(
    ("strength", "nearest"), [(-0.1, 0), (1.5, 1), (math.nan, 0)], ids=["low", "high", "nan"]
)
def test_a_strength_out_of_range_is_refused(strength, nearest):
    for fits in (0, 0.5, 1):
        check_drift_control(fits)
    with pytest.raises(ValueError) as error:
        check_drift_control(strength)
    assert str(error.value) == (
        f"drift_control is {strength:g}, but must be from 0 to 1; the nearest valid value is {nearest}."
    )
