"""The training loop: resumed bit for bit, equal in two processes, stopped by non-finite values."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_training import NETWORK, changed, make_dataset, project, stage_two

from swifti2v_train import commands
from swifti2v_train.config import save_config
from swifti2v_train.data.dataset import Dataset
from swifti2v_train.loop.checkpoints import AVERAGES, newest_checkpoint
from swifti2v_train.loop.trainer import Trainer, batch_numbers
from swifti2v_train.networks.native_keys import to_native
from swifti2v_train.networks.window_transformer import Shape, empty_network
from swifti2v_train.tasks.stage_two import WindowSamples, WindowTask

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def newest(run):
    """Weights and averages of a run's newest checkpoint."""
    folder = newest_checkpoint(Path(run))
    return load_file(folder / "model.safetensors"), load_file(folder / AVERAGES)


def largest_difference(one, two):
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)


def scalars(run, name):
    events = EventAccumulator(str(Path(run) / "log"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_six_steps_are_three_and_three_bit_for_bit(dataset, tmp_path):
    whole = stage_two(tmp_path / "whole", warmup_steps=4)
    first = commands.stage2(project(dataset, stage2=whole))
    assert first.step == 6 and first.finished and len(first.losses) == 6

    halves = changed(whole, output=str(tmp_path / "halves"))
    begun = commands.stage2(project(dataset, stage2=changed(halves, steps=3)))
    ended = commands.stage2(project(dataset, stage2=halves))
    assert begun.losses + ended.losses == first.losses
    for one, two in zip(newest(whole.output), newest(halves.output), strict=True):
        assert largest_difference(one, two) == 0
    assert scalars(halves.output, "loss").keys() == {1, 2, 3, 4, 5, 6}
    rates = scalars(whole.output, "learning_rate")
    assert [rates[step] for step in range(1, 7)] == pytest.approx(
        [2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3], rel=1e-5
    )


def test_a_lora_resumes_bit_for_bit_and_saves_no_frozen_weights(dataset, tmp_path):
    network = empty_network(Shape.new(NETWORK, 48, 48))
    torch.nn.init.normal_(network.proj_out.weight)
    base = tmp_path / "base.safetensors"
    save_file({key: v.contiguous() for key, v in to_native(network.state_dict()).items()}, base)
    whole = stage_two(tmp_path / "whole", steps=4, base=str(base), method="lora", lora_rank=2)
    losses = commands.stage2(project(dataset, stage2=whole)).losses
    halves = changed(whole, output=str(tmp_path / "halves"))
    begun = commands.stage2(project(dataset, stage2=changed(halves, steps=2)))
    ended = commands.stage2(project(dataset, stage2=halves))
    assert begun.losses + ended.losses == losses
    for one, two in zip(newest(whole.output), newest(halves.output), strict=True):
        assert largest_difference(one, two) == 0
        assert {name for name in one if "lora" not in name} == {
            "patch_embedding.weight",
            "patch_embedding.bias",
        }


def test_two_processes_give_what_one_gives(dataset, tmp_path):
    # Whatever the gradient, Adam's steps have the size of the learning rate: rounding errors grow with it.
    one = stage_two(tmp_path / "one", rollout_share=0.5, learning_rate=3e-4)
    losses = commands.stage2(project(dataset, stage2=one)).losses
    two = changed(one, output=str(tmp_path / "two"))
    save_config(project(dataset, stage2=two), tmp_path / "two.yaml")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "swifti2v_train", "stage2", "--config", str(tmp_path / "two.yaml")]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (newest_checkpoint(Path(two.output)) / "random_states_1.pkl").exists()  # of the second process
    logged = scalars(two.output, "loss")
    assert [logged[step] for step in range(1, 7)] == pytest.approx(losses, abs=1e-6)
    for expected, found in zip(newest(one.output), newest(two.output), strict=True):
        assert largest_difference(expected, found) <= 1e-6


def test_micro_batches_do_not_change_the_result(dataset, tmp_path):
    single = stage_two(tmp_path / "single", steps=3)
    double = changed(single, output=str(tmp_path / "double"), micro_batch=2)
    losses = [commands.stage2(project(dataset, stage2=s)).losses for s in (single, double)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_each_sample_goes_to_one_process():
    settings = stage_two("", batch_size=12, micro_batch=2)
    shares = [batch_numbers(settings, 3, process) for process in range(3)]
    assert shares[0] == [[0, 1], [6, 7]]
    assert sorted(n for share in shares for numbers in share for n in numbers) == list(range(12))
    with pytest.raises(
        ValueError, match=r"batch_size is 12, .* a multiple of 10; the nearest valid value is 10"
    ):
        batch_numbers(settings, 5, 0)


def test_averages_follow_the_weights_at_their_decay(dataset, tmp_path):
    """With decay 0 they are the weights of the last step."""
    settings = stage_two(tmp_path / "run", steps=3, ema_decay=0)
    commands.stage2(project(dataset, stage2=settings))
    weights, averages = newest(settings.output)
    assert largest_difference(weights, averages) <= 1e-9


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    folder = make_dataset(tmp_path / "data")
    settings = stage_two(tmp_path / "run", steps=2)
    commands.stage2(project(folder, stage2=settings))
    before = newest(settings.output)
    shard = folder / Dataset(folder).clips[0].shard
    tensors = load_file(shard)
    save_file({key: value * torch.nan for key, value in tensors.items()}, shard)
    with pytest.raises(FloatingPointError, match=r"The loss of step 3 is nan, .*checkpoint-00000002"):
        commands.stage2(project(folder, stage2=changed(settings, steps=4)))
    assert newest_checkpoint(Path(settings.output)).name == "checkpoint-00000002"
    for one, two in zip(before, newest(settings.output), strict=True):
        assert largest_difference(one, two) == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(dataset, tmp_path, value):
    settings = stage_two(tmp_path / "run", steps=1)
    network = empty_network(Shape.new(NETWORK, 96, 48))
    before = {key: v.clone() for key, v in network.state_dict().items()}
    network.proj_out.bias.register_hook(lambda gradient: gradient * value)
    task = WindowTask(WindowSamples(Dataset(dataset), settings, NETWORK.text_dim))
    with pytest.raises(FloatingPointError, match=r"gradient norm of step 1 is (nan|inf), "):
        Trainer(task, network, settings).run()
    assert largest_difference(network.state_dict(), before) == 0


def test_a_call_pauses_when_its_time_is_up_and_the_next_one_continues(dataset, tmp_path):
    settings = stage_two(tmp_path / "run", steps=4, stop_after_minutes=1e-9)
    outcome = commands.stage2(project(dataset, stage2=settings))
    assert (outcome.step, outcome.finished) == (0, False)
    outcome = commands.stage2(project(dataset, stage2=changed(settings, stop_after_minutes=0)))
    assert (outcome.step, outcome.finished) == (4, True)


def test_old_checkpoints_are_removed_and_none_is_half_written(dataset, tmp_path):
    settings = stage_two(tmp_path / "run", checkpoint_steps=1, keep_checkpoints=2, sheet_steps=3)
    half = tmp_path / "run" / "checkpoint-00000009.part"
    half.mkdir(parents=True)  # what an interrupted write leaves
    commands.stage2(project(dataset, stage2=settings))
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint*") if path != half)
    assert kept == ["checkpoint-00000005", "checkpoint-00000006"]
    events = EventAccumulator(str(tmp_path / "run" / "log"))
    events.Reload()
    assert [event.step for event in events.Images("sheet")] == [0, 3, 6]


def test_a_run_does_not_resume_with_other_settings(dataset, tmp_path):
    settings = stage_two(tmp_path / "run", steps=1)
    commands.stage2(project(dataset, stage2=settings))
    with pytest.raises(
        ValueError, match=r"learning_rate is 0.5, but .*run was started with 0.001; set it back"
    ):
        commands.stage2(project(dataset, stage2=changed(settings, learning_rate=0.5)))
