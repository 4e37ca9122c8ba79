"""The suites and their table, without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dev
from devtools import suites
from devtools.environment import Host

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runner(home: Path, monkeypatch: Patch) -> dict[str, Any]:
    """Stand in for the suites: exit codes by word in the command; records what ran."""
    state: dict[str, Any] = {"codes": {}, "ran": [], "paths": []}

    def call(command: list[Any], env: dict[str, str] | None) -> int:
        state["ran"].append(" ".join(map(str, command[1:])))
        state["paths"].append((env or {}).get("COMFYUI_PATH"))
        return next((code for word, code in state["codes"].items() if word in command), 0)

    monkeypatch.setattr(suites, "call", call)
    monkeypatch.setattr(suites, "ensure_venv", lambda: Path("python"))
    host = Host(Path("hostdir"), Path("python"), "0.30.0")
    monkeypatch.setattr(suites, "find_host", lambda version: host)
    monkeypatch.setattr(suites, "find_browser", lambda: "chromium")
    return state


def test_default_suites_run_in_order_and_browser_is_listed(runner: dict[str, Any], capsys: Capture) -> None:
    assert dev.main(["test"]) == 0
    pytest_command = "-I -m pytest -c tests/pytest.ini --rootdir tests tests/"
    assert runner["ran"][:2] == ["-I -m ruff check .", "-I -m ruff format --check ."]
    assert runner["ran"][2:5] == ["-I -m codespell_lib", "-I -m mypy", "-I -m mypy -p swifti2v.nodes"]
    assert runner["ran"][5:] == [pytest_command + suite for suite in ("unit", "host", "e2e")]
    assert runner["paths"] == [None, None, None, None, None, None, "hostdir", "hostdir"]
    table = capsys.readouterr().out.splitlines()[-7:]
    assert [line.split()[0] for line in table] == ["suite", *suites.SUITES]
    assert all(line.split()[1] == "passed" for line in table[1:-1])
    assert "not run: ask with python3 dev.py test browser" in table[-1]


def test_one_failed_suite_fails_the_run_but_stops_nothing(runner: dict[str, Any], capsys: Capture) -> None:
    runner["codes"] = {"check": 1, "tests/unit": 5}  # 5: pytest found no tests
    assert dev.main(["test", "browser", "unit", "lint"]) == 1
    table = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table == [["lint", "failed"], ["unit", "failed"], ["browser", "passed"]]


def test_selection_skips_lint_and_accepts_empty_suites(runner: dict[str, Any], capsys: Capture) -> None:
    runner["codes"] = {"tests/host": 5}
    assert dev.main(["test", "-k", "plan"]) == 0
    assert [command.split()[-3:] for command in runner["ran"]] == [
        [f"tests/{suite}", "-k", "plan"] for suite in ("unit", "host", "e2e")
    ]
    table = capsys.readouterr().out
    assert all(f"not run: -k {why}" in table for why in ("chooses tests", "selects nothing here"))


def test_missing_browser_fails_in_ci(runner: dict[str, Any], monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(suites, "find_browser", lambda: None)
    monkeypatch.setenv("CI", "")
    assert dev.main(["test", "browser"]) == 0
    reason = "neither chromium nor google-chrome is installed"
    assert f"browser  not run: {reason}" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    assert dev.main(["test", "browser"]) == 1
    assert reason in capsys.readouterr().out
    assert runner["ran"] == []
