"""One command for the whole way: the same commands as on the page, in order, until one is not done."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from swifti2v_train import __main__ as program
from swifti2v_train import whole
from swifti2v_train.config import load_config

ROOT = Path(__file__).resolve().parents[3]


def commands_of_the_page():
    text = (ROOT / "swifti2v_train" / "README.md").read_text().replace("\\\n", "")
    section = text.partition("## The tiny models")[2].partition("\n## ")[0]
    for line in re.findall(r"^    python -m swifti2v_train (.*)$", section, re.MULTILINE):
        command, *options = shlex.split(line)
        changes = (word for before, word in pairwise(options) if before == "--set")
        yield command, dict(change.split("=", 1) for change in changes)


def test_the_commands_are_those_of_the_page():
    config = load_config(ROOT / "swifti2v_train" / "recipes" / "tiny.yaml")
    assert whole.commands(config) == list(commands_of_the_page())


@pytest.mark.parametrize(("codes", "run"), [((0,) * 9, 9), ((0, 0, 0, 3), 4), ((1,), 1)])
def test_it_stops_where_something_is_not_done(monkeypatch, codes, run):
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
