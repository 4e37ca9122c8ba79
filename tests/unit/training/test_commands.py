"""The program: its exit codes and messages, and the pipeline from photos to measured weights."""

import logging
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from tiny_training import make_dataset, project, stage_one, stage_two

from swifti2v_train import __main__ as program
from swifti2v_train import commands
from swifti2v_train.config import load_config, save_config

ROOT = Path(__file__).resolve().parents[3]


def commands_in_the_readme():
    text = (ROOT / "swifti2v_train" / "README.md").read_text().replace("\\\n", "")
    section = text.partition("## The tiny models")[2].partition("\n## ")[0]
    for line in re.findall(r"^    python -m swifti2v_train (.*)$", section, re.MULTILINE):
        command, *options = shlex.split(line)
        changes = (word for before, word in pairwise(options) if before == "--set")
        yield command, dict(change.split("=", 1) for change in changes)


def test_the_pipeline_is_the_readme_s():
    config = load_config(ROOT / "swifti2v_train" / "recipes" / "tiny.yaml")
    assert commands.pipeline(config) == list(commands_in_the_readme())


@pytest.mark.parametrize(("codes", "run"), [((0,) * 9, 9), ((0, 0, 0, 3), 4), ((1,), 1)])
def test_the_pipeline_stops_at_the_first_command_that_does_not_finish(monkeypatch, codes, run):
    ran, left = [], list(codes)

    def fake(options):
        ran.append((options.command, list(options.set)))
        return left.pop(0)

    monkeypatch.setattr(program, "_run", fake)
    recipe = str(ROOT / "swifti2v_train" / "recipes" / "tiny.yaml")
    assert program.main(["all", "--config", recipe, "--set", "data.folder=runs/tiny/data"]) == codes[-1]
    assert len(ran) == run
    assert ran[0] == ("autoencoder", ["data.folder=runs/tiny/data"])
    if run > 2:
        expected = ["data.folder=runs/tiny/data", "data.folder=runs/tiny/motion", "prepare.stage_one="]
        assert ran[2] == ("prepare", expected)


def test_a_training_prints_its_estimate_before_it_starts(tmp_path, caplog):
    caplog.set_level(logging.INFO, "SwiftI2V")
    folder = make_dataset(tmp_path / "data", lengths=(5,))
    config = project(
        folder,
        stage1=stage_one(tmp_path / "one"),
        stage2=stage_two(tmp_path / "two", steps=1, rollout_share=0),
    )
    save_config(config, tmp_path / "p.yaml")
    for command in ("stage1", "stage2"):
        assert program.main([command, "--config", str(tmp_path / "p.yaml"), "--estimate"]) == 0
        printed = caplog.text
        caplog.clear()
        assert "GiB per process" in printed and "TFLOP a step" in printed
    assert not (tmp_path / "two").exists()
    assert commands.estimate(config, "stage2", 1, sharded=False).tokens == 5 * 2 * 3
    assert program.main(["stage2", "--config", str(tmp_path / "p.yaml")]) == 0
    assert "Step 1 of 1. Finished." in caplog.text


def test_an_error_is_one_sentence_and_an_exit_code(tmp_path, caplog):
    (tmp_path / "p.yaml").write_text("stage2: {steps: 0}")
    assert program.main(["stage2", "--config", str(tmp_path / "p.yaml")]) == 1
    assert "stage2: steps is 0, but must be greater than or equal to 1" in caplog.text


def test_a_paused_training_has_its_own_exit_code_and_continues(tmp_path, caplog):
    caplog.set_level(logging.INFO, "SwiftI2V")
    folder = make_dataset(tmp_path / "data", lengths=(5,))
    training = stage_two(tmp_path / "run", steps=1, rollout_share=0)
    save_config(project(folder, stage2=training), tmp_path / "p.yaml")
    command = ["stage2", "--config", str(tmp_path / "p.yaml")]
    assert program.main([*command, "--set", "stage2.stop_after_minutes=1e-9"]) == 3
    assert "Step 0 of 1. Paused: run the command again to continue." in caplog.text
    assert program.main(command) == 0
