"""The configuration: files are read back unchanged, and invalid settings are refused in one sentence."""

from pathlib import Path

import pytest

from swifti2v_train.config import Config, StageTwo, load_config, save_config

RECIPES = sorted((Path(__file__).resolve().parents[3] / "swifti2v_train" / "recipes").glob("*.yaml"))


def config(tmp_path, text):
    path = tmp_path / "project.yaml"
    path.write_text(text)
    return load_config(path)


def test_settings_are_read_and_all_others_keep_their_defaults(tmp_path):
    read = config(
        tmp_path,
        "stage2:\n  learning_rate: 1e-4\n  precision: no\n  context: read-only\n  network: {heads: 1}\n"
        "prepare: {sources: [photos, clip.mp4]}\n",
    )
    assert (read.stage2.learning_rate, read.stage2.precision, read.stage2.context) == (
        1e-4,
        "no",
        "read-only",
    )
    assert (read.stage2.network.heads, read.stage2.network.layers) == (1, 6)
    assert read.prepare.sources == ("photos", "clip.mp4")
    assert read.stage1 == Config().stage1


def test_a_saved_configuration_is_read_back_unchanged(tmp_path):
    changed = Config(stage2=StageTwo(batch_size=3, output="run", method="lora"))
    save_config(changed, tmp_path / "written.yaml")
    assert load_config(tmp_path / "written.yaml") == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage3: {}", r'has no setting "stage3"; the nearest one is "stage[12]"\.'),
        ("stage2: {learning_rat: 1}", 'stage2 has no setting "learning_rat"; the nearest one is "learning'),
        ("stage2: {batch_size: 0}", r"stage2: batch_size is 0, but must be greater than or equal to 1\."),
        ("stage2: {batch_size: 1.5}", "batch_size is 1.5, but must be a whole number"),
        ("stage2: {batch_size: true}", "batch_size is True, but must be a whole number"),
        ("stage2: {rollout_share: 2}", r"stage2: rollout_share is 2, but must be less than or equal to 1"),
        ("stage2: {rollout_share: .nan}", "rollout_share is nan"),
        ("stage2: {shift: 0}", r"stage2: shift is 0, but must be greater than 0\."),
        ("stage2: {method: lara}", "stage2: method is 'lara', but must be 'full' or 'lora'"),
        ("stage2: {learning_rate: fast}", "learning_rate is 'fast', but must be a number"),
        ("stage2: {learning_rate: true}", "learning_rate is True, but must be a number"),
        ("stage2: {gradient_checkpointing: 1}", "is 1, but must be true or false"),
        ("stage2: {output: 3}", "output is 3, but must be text in quotes"),
        ("stage2: {network: {heads: 0}}", "stage2: network: heads is 0, but must be greater"),
        ("prepare: {sources: photos}", "must be a list of paths"),
        ("stage2: 3", "stage2 is 3, but must be a mapping"),
        ("prepare: {sources: [3]}", "prepare: sources is 3, but must be text in quotes"),
        ("[stage2]", r"the file is \['stage2'\], but must be a mapping"),
        ("stage2: [", "is not valid YAML"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, text)


def test_settings_of_the_command_line_replace_those_of_the_file(tmp_path):
    (tmp_path / "p.yaml").write_text("stage2: {steps: 5, batch_size: 2}")
    changes = ["stage2.steps=7", "stage2.network.heads=1", "export.run=runs/x"]
    read = load_config(tmp_path / "p.yaml", changes)
    assert (read.stage2.steps, read.stage2.batch_size, read.stage2.network.heads) == (7, 2, 1)
    assert read.export.run == "runs/x"
    with pytest.raises(ValueError, match=r'"stage2\.steps" changes no setting; write section'):
        load_config(tmp_path / "p.yaml", ["stage2.steps"])
    with pytest.raises(
        ValueError, match=r'"stage2\.steps\.x=1" cannot be set: .*steps is 5, not a mapping'
    ):
        load_config(tmp_path / "p.yaml", ["stage2.steps.x=1"])


def test_numbers_in_scientific_notation_are_numbers_in_the_file_and_on_the_command_line(tmp_path):
    (tmp_path / "p.yaml").write_text("stage2: {learning_rate: 1e-4, gradient_clip: .inf}")
    read = load_config(tmp_path / "p.yaml", ["stage1.learning_rate=5e-5"])
    assert (read.stage2.learning_rate, read.stage1.learning_rate) == (1e-4, 5e-5)
    save_config(read, tmp_path / "written.yaml")
    assert load_config(tmp_path / "written.yaml") == read


def test_settings_cannot_be_assigned():
    with pytest.raises(ValueError, match="frozen"):
        Config().stage2.steps = 5


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_valid(path):
    load_config(path)
