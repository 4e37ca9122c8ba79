"""Programs that are run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sentences import sentence

from devtools import paths, programs

Capture = pytest.CaptureFixture[str]


def test_failed_step_reports_the_reason_and_the_log(home: Path, capfd: Capture) -> None:
    code = "print('noise\\nERROR: no such package\\nhint'); raise SystemExit(1)"
    log = home / ".demo" / "setup.log"
    with sentence(f"installing packages failed: no such package (the log is {log})"):
        programs.run_logged([sys.executable, "-c", code], "installing packages")
    assert log.read_text().startswith("noise\n")
    # `dev.py host` promises a clean stdout.
    assert capfd.readouterr() == ("", "installing packages ... 0:00\n")


def test_a_program_continues_as_another_one() -> None:
    code = "import sys; from devtools.programs import become; print('before'); "
    code += "sys.exit(become([sys.executable, '-c', 'print(1); raise SystemExit(7)']))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=paths.REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "before\n1\n")


def test_modules_run_from_any_folder_in_isolation(tmp_path: Path) -> None:
    command = [*programs.module_command(Path(sys.executable), "devtools.demo"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "--motion" in done.stdout
