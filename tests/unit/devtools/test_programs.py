"""Programs that are run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sentences import sentence

from devtools import programs

Capture = pytest.CaptureFixture[str]


def test_failed_step_tells_the_reason_and_the_log(home: Path, capfd: Capture) -> None:
    code = "print('noise\\nERROR: no such package\\nhint'); raise SystemExit(1)"
    log = home / ".demo" / "setup.log"
    with sentence(f"installing packages failed: no such package (the log is {log})"):
        programs.run_logged([sys.executable, "-c", code], "installing packages")
    assert log.read_text().startswith("noise\n")
    # `dev.py host` promises a clean stdout.
    assert capfd.readouterr() == ("", "installing packages ... 0:00\n")
