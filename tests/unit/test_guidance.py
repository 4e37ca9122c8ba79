"""The reference followed more or less: which forwards run, and how they are mixed."""

import math

import pytest
import torch

from swifti2v_core.guidance import (
    check_reference_strength,
    drop_reference,
    predict_with_strength,
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
    calls = []

    def predict(given, dropped):
        calls.append(dropped)
        assert torch.equal(given, drop_reference(inputs, 2) if dropped else inputs)
        return given[:, :48] + 2 * given[:, 48:]

    result = predict_with_strength(predict, inputs, 2, strength)
    expected = inputs[:, :48] + 2 * inputs[:, 48:]
    expected[:, :, 2:] = inputs[:, :48, 2:] + strength * 2 * inputs[:, 48:, 2:]
    assert (result - expected).abs().max() <= 1e-6
    assert len(calls) == predictions_per_step(strength)
    assert calls == {0: [True], 1: [False]}.get(strength, [True, False])


def test_half_precision_is_rounded_once(inputs):
    parts = inputs[:, :48].to(torch.bfloat16), inputs[:, 48:].to(torch.bfloat16)
    mixed = predict_with_strength(lambda _, dropped: parts[not dropped], inputs, 2, 0.3)
    exact = parts[0].double() + 0.3 * (parts[1].double() - parts[0].double())
    assert mixed.dtype == torch.bfloat16
    assert ((mixed.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-3).all()


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
