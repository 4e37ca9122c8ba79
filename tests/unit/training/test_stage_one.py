"""Stage I: noise levels of the experts, and a training that learns."""

import pytest
import torch
from tiny_training import make_dataset, project, stage_one

from swifti2v_core.sigmas import shift_sigma
from swifti2v_train import commands
from swifti2v_train.tasks.stage_one import sigma_range, unshift_sigma


@pytest.mark.parametrize(("expert", "low", "high"), [("both", 0, 1), ("high", 0.9, 1), ("low", 0, 0.9)])
def test_experts_are_trained_on_their_noise_levels(expert, low, high):
    assert sigma_range(stage_one("", expert=expert)) == (low, high)
    for sigma in (low, high):
        drawn = torch.tensor(unshift_sigma(sigma, 5.0), dtype=torch.float64)
        assert float(shift_sigma(drawn, 5.0)) == pytest.approx(sigma)


@pytest.mark.parametrize(("channels", "expert"), [(48, "both"), (16, "high"), (16, "low")])
def test_stage_one_overfits_a_clip(tmp_path, channels, expert):
    folder = make_dataset(tmp_path / "data", lengths=(3,), channels=channels)
    settings = stage_one(tmp_path / "run", steps=40, expert=expert, learning_rate=3e-3)
    losses = commands.stage1(project(folder, stage1=settings)).losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
