"""The reference followed more or less: which forwards run, and how they are mixed."""

import math

import pytest
import torch

from swifti2v_core.stage_two.reference_strength import (
    check_reference_strength,
    drop_reference,
    inputs_to_run,
    mix_predictions,
    predictions_per_step,
)


@pytest.fixture
def inputs():
    return torch.randn(2, 96, 5, 2, 2, generator=torch.Generator().manual_seed(0))


def test_only_the_reference_of_noisy_frames_is_dropped(inputs):
    before = inputs.clone()
    dropped = drop_reference(inputs, 2)
    assert torch.equal(inputs, before)
    assert torch.equal(dropped[:, :48], inputs[:, :48])
    assert torch.equal(dropped[:, 48:, :2], inputs[:, 48:, :2])
    assert not dropped[:, 48:, 2:].any()


@pytest.mark.parametrize("strength", [0, 0.25, 1, 1.5, 2])
def test_predictions_are_mixed_in_a_straight_line(inputs, strength):
    to_run = inputs_to_run(inputs, 2, strength)
    references = {0: ["dropped"], 1: ["followed"]}.get(strength, ["dropped", "followed"])
    assert list(to_run) == references
    assert len(to_run) == predictions_per_step(strength)
    for reference, given in to_run.items():
        assert torch.equal(given, inputs if reference == "followed" else drop_reference(inputs, 2))
    result = mix_predictions({name: x[:, :48] + 2 * x[:, 48:] for name, x in to_run.items()}, strength)
    expected = inputs[:, :48] + 2 * inputs[:, 48:]
    expected[:, :, 2:] = inputs[:, :48, 2:] + strength * 2 * inputs[:, 48:, 2:]
    assert (result - expected).abs().max() <= 1e-6


def test_a_single_prediction_is_handed_through(inputs):
    assert inputs_to_run(inputs, 2, 1)["followed"] is inputs
    assert mix_predictions({"followed": inputs}, 1) is inputs


def test_half_precision_is_rounded_once(inputs):
    dropped, followed = inputs[:, :48].to(torch.bfloat16), inputs[:, 48:].to(torch.bfloat16)
    mixed = mix_predictions({"dropped": dropped, "followed": followed}, 0.3)
    exact = dropped.double() + 0.3 * (followed.double() - dropped.double())
    assert mixed.dtype == torch.bfloat16
    assert ((mixed.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize(
    ("strength", "nearest"), [(-1, 0), (2.1, 2), (math.nan, 1)], ids=["low", "high", "nan"]
)
def test_a_strength_out_of_range_is_refused(strength, nearest):
    for fits in (0, 0.5, 2):
        check_reference_strength(fits)
    with pytest.raises(ValueError) as error:
        check_reference_strength(strength)
    assert str(error.value) == (
        f"reference_strength is {strength:g}, but must be from 0 to 2; "
        f"the nearest valid value is {nearest}."
    )
