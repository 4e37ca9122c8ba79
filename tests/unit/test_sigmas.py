import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from swifti2v_core.sigmas import (
    FEW_STEP_TIMESTEPS,
    even_timesteps,
    flow_sigmas,
    parse_timesteps,
    split_sigmas,
)


def test_the_four_step_list_at_shift_5():
    expected = torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0])
    assert torch.allclose(flow_sigmas(FEW_STEP_TIMESTEPS, 5.0), expected, atol=1e-7)
    assert even_timesteps(4) == FEW_STEP_TIMESTEPS


@pytest.mark.parametrize(("steps", "shift"), [(4, 5.0), (10, 8.0), (40, 5.0), (7, 1.0)])
def test_schedule_equals_diffusers(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    timesteps = even_timesteps(steps)
    scheduler.set_timesteps(sigmas=[t / 1000 for t in timesteps])
    assert torch.allclose(flow_sigmas(timesteps, shift), scheduler.sigmas, atol=1e-6)


def test_denoise_is_the_tail_of_a_longer_schedule():
    whole = flow_sigmas(even_timesteps(8), 5.0)
    assert torch.allclose(flow_sigmas(even_timesteps(4), 5.0, denoise=0.5), whole[-5:], atol=1e-7)


@pytest.mark.parametrize("denoise", [0.0, -1.0, 1.01, float("nan")])
def test_denoise_out_of_range(denoise):
    with pytest.raises(ValueError, match="denoise is"):
        flow_sigmas(even_timesteps(4), 5.0, denoise)


def test_experts_change_at_the_boundary():
    high, low = split_sigmas(flow_sigmas(FEW_STEP_TIMESTEPS, 5.0))
    assert high.tolist() == pytest.approx([1.0, 0.9375, 5 / 6])
    assert low.tolist() == pytest.approx([5 / 6, 0.625, 0.0])
    high, low = split_sigmas(flow_sigmas(FEW_STEP_TIMESTEPS, 5.0, denoise=0.5))
    assert len(high) == 1 and len(low) == 5
    high, low = split_sigmas(flow_sigmas(even_timesteps(1), 5.0))
    assert len(high) == 2 and low.tolist() == [0.0]


def test_timestep_lists_are_read_or_refused():
    assert parse_timesteps("1000, 757 522") == (1000.0, 757.0, 522.0)
    for text in ("", "a", "500, 600", "1001", "10, 0"):
        with pytest.raises(ValueError, match="timesteps is"):
            parse_timesteps(text)
    with pytest.raises(ValueError, match="steps is 0"):
        even_timesteps(0)
    with pytest.raises(ValueError, match="shift is 0"):
        flow_sigmas((1000,), 0)
