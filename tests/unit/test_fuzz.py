"""A short run of every fuzz target; ``python tests/fuzz/run.py`` runs them for longer."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "fuzz"))

import run
import targets


def test_every_target_is_run():
    assert {target.__name__ for target in targets.TARGETS} == set(run.NAMES)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.__name__)
def test_the_seeds(target):
    for seed in targets.TARGETS[target]:
        target(seed)


def test_a_broken_parser_is_found(monkeypatch):
    """Of all errors, targets let the documented one pass alone, and that only as a sentence."""

    def overflow(text):
        raise OverflowError("int too large to convert to float")

    def bare(text):
        raise ValueError("could not convert string to float")

    for broken, found in ((overflow, OverflowError), (bare, AssertionError)):
        monkeypatch.setattr(targets, "parse_timesteps", broken)
        with pytest.raises(found):
            targets.timesteps(b"1000")


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris has no wheel here")
@pytest.mark.parametrize("name", run.NAMES)
def test_some_cases(name):
    assert run.count_cases(name, "-runs=2000") >= 2000
