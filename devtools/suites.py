"""Lint, types and the test suites."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from devtools import paths
from devtools.environment import Host, ensure_venv, find_host
from devtools.programs import call
from devtools.workspace import link_pack

SUITES = ("lint", "types", "unit", "host", "e2e", "browser")
SUITES_WITH_HOST = ("host", "e2e", "browser")


def run_tests(suites: Sequence[str], expression: str | None, comfyui: str | None) -> int:
    """Run the suites, print a table and return the exit code.

    Parameters
    ----------
    suites
        Names in `SUITES`; none means all but the last.
    expression
        Runs only the tests that match; passed to pytest as ``-k``.
    comfyui
        A folder or version, see `find_host`.
    """
    asked = [suite for suite in SUITES if suite in suites] or SUITES[:-1]
    host = find_host(comfyui) if set(asked) & set(SUITES_WITH_HOST) else None
    python = ensure_venv()
    rows = []
    for suite in asked:
        started = time.monotonic()
        outcome = run_suite(suite, python, host if suite in SUITES_WITH_HOST else None, expression)
        rows.append((suite, outcome, time.monotonic() - started))
    if not suites:
        rows.append(("browser", "not run: ask with python3 dev.py test browser", 0.0))
    print("\n" + (f"ComfyUI {host.version}, " if host else "") + f"Python {sys.version.split()[0]}")
    width = max(len(outcome) for _, outcome, _ in rows)
    print(f"{'suite':<8} {'result':<{width}} {'seconds':>8}")
    for suite, outcome, seconds in rows:
        print(f"{suite:<8} {outcome:<{width}} {seconds:>8.1f}")
    return int(any(outcome == "failed" for _, outcome, _ in rows))


def run_suite(suite: str, python: Path, host: Host | None, expression: str | None) -> str:
    """Run one suite with its output passed through; return "passed", "failed" or "not run: ..."."""
    if suite in ("lint", "types") and expression:
        return "not run: -k chooses tests"
    if suite == "browser" and find_browser() is None:
        reason = "neither chromium nor google-chrome is installed"
        if os.environ.get("CI") != "true":
            return f"not run: {reason}"
        print(f"The browser suite cannot run: {reason}.")
        return "failed"
    print(f"\n== {suite}" + (f" (ComfyUI {host.version})" if host else ""))
    env = {**os.environ, "COMFYUI_PATH": str(host.folder)} if host else None
    codes = [call(command, env) for command in suite_commands(suite, python, expression)]
    if expression and codes == [5]:  # pytest: nothing was selected
        return "not run: -k selects nothing here"
    return "failed" if any(codes) else "passed"


def suite_commands(suite: str, python: Path, expression: str | None) -> list[list[str | Path]]:
    """Return the commands that make up a suite."""
    # -I keeps the repository off sys.path, where its nodes/ would hide ComfyUI's module `nodes`.
    module: list[str | Path] = [python, "-I", "-m"]
    if suite == "lint":
        linters = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["codespell_lib"])
        return [[*module, *linter] for linter in linters]
    if suite == "types":
        # The nodes import the core as ComfyUI loads them: from the package that holds both.
        link_pack(paths.WORKSPACE / "types" / "swifti2v")
        return [[*module, "mypy"], [*module, "mypy", "-p", "swifti2v.nodes"]]
    command = [*module, "pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", f"tests/{suite}"]
    return [[*command, "-k", expression] if expression else command]


def find_browser() -> str | None:
    """Return the path of an installed Chromium or Chrome, None without one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)
