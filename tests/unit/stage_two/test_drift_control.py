"""Latent statistics of finished frames brought back to the reference."""

import math

import pytest
import torch

from swifti2v_core.stage_two.drift_control import check_drift_control, low_pass_statistics, match_statistics

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


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_a_shift_per_channel_comes_back(reference, strength):
    shift = per_channel(0.5, -0.2, 1.0)
    result = match_statistics(reference + shift, reference, strength)
    assert (result - (reference + (1 - strength) * shift)).abs().max() <= 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_contrast_per_channel_comes_back(reference, strength):
    mean, _ = low_pass_statistics(reference)
    scale = per_channel(1.25, 0.8, 1.9)
    result = match_statistics((reference - mean) * scale + mean, reference, strength)
    gain = 1 + strength * (1 / scale - 1)
    assert (result - ((reference - mean) * scale * gain + mean)).abs().max() <= 1e-5
    if strength == 1:
        assert (result - reference).abs().max() <= 1e-5


def test_every_frame_is_compared_with_its_own_reference(reference):
    """A change of light in the reference stays, and a motion does not smear."""
    light = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 4, 1, 1)
    moved = (reference + light).roll(4, dims=4)
    result = match_statistics(moved + 0.7, reference + light, 1.0)
    assert (result - moved).abs().max() <= 1e-5


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_frames_without_drift_keep_their_bits(reference, strength):
    assert torch.equal(match_statistics(reference, reference, strength), reference)
    half = reference.to(torch.bfloat16)
    assert torch.equal(match_statistics(half, half, strength), half)


def test_fine_detail_is_neither_measured_nor_removed(reference):
    checker = torch.tensor([1.0, -1.0]).repeat(6) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    assert (
        match_statistics(reference + checker, reference, 1.0) - (reference + checker)
    ).abs().max() <= 1e-5


def test_channels_without_contrast_are_moved_and_not_scaled(reference):
    flat = torch.full(SHAPE, 2.0)
    assert torch.equal(match_statistics(flat, torch.zeros(SHAPE), 1.0), torch.zeros(SHAPE))
    mean, _ = low_pass_statistics(reference)
    assert (match_statistics(flat, reference, 1.0) - mean).abs().max() <= 1e-5
    assert (match_statistics(reference, flat, 1.0) - (reference - mean + 2)).abs().max() <= 1e-5
    single = torch.ones(1, 3, 4, 2, 2)
    assert torch.isfinite(match_statistics(single, single * 0, 0.5)).all()


def test_contrast_is_corrected_by_two_at_most(reference):
    _, before = low_pass_statistics(reference)
    for scale, expected in ((10.0, 5.0), (0.1, 0.2)):
        _, after = low_pass_statistics(match_statistics(reference * scale, reference, 1.0))
        assert torch.allclose(after / before, torch.full_like(after, expected), rtol=1e-4)


def test_inputs_stay_and_0_hands_the_frames_through(reference):
    frames = reference * 1.5 + 0.3
    copies = frames.clone(), reference.clone()
    match_statistics(frames, reference, 0.7)
    assert torch.equal(frames, copies[0]) and torch.equal(reference, copies[1])
    assert match_statistics(frames, reference, 0) is frames


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
