"""The command line of `dev.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

import dev
from devtools import paths
from devtools.environment import Host
from devtools.programs import module_command

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def test_missing_photo_is_one_sentence_before_any_setup(home: Path, capsys: Capture) -> None:
    assert dev.main(["demo", "--image", "no such photo.jpg"]) == 1
    assert capsys.readouterr().err == "dev.py: The photo no such photo.jpg is not a file.\n"
    assert not (home / ".demo").exists()


def test_interrupts_are_quiet_and_system_errors_one_sentence(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(dev, "find_host", Mock(side_effect=KeyboardInterrupt))
    assert dev.main(["host"]) == 130
    monkeypatch.setattr(dev, "find_host", Mock(side_effect=OSError(28, "No space left on device")))
    assert dev.main(["host"]) == 1
    assert capsys.readouterr().err == "dev.py: [Errno 28] No space left on device\n"


def test_dev_py_imports_nothing_but_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.append({str(paths.REPO)!r}); import dev;"
        "names = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(names - set(sys.stdlib_module_names) - {'dev', 'devtools', '__main__'}))"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_demo_continues_in_the_python_of_comfyui(tmp_path: Path, monkeypatch: Patch) -> None:
    become = Mock(return_value=7)
    host = Host(tmp_path, Path("python"), "0.30.0")
    monkeypatch.setattr(dev, "find_host", lambda: host)
    monkeypatch.setattr(dev, "become", become)
    photo = tmp_path / "a photo.jpg"
    photo.touch()
    assert dev.main(["demo"]) == 7
    assert dev.main(["demo", "--image", str(photo), "--motion", "model", "--serve"]) == 7
    begin = module_command(host.python, "devtools.demo")
    assert [call.args[0] for call in become.call_args_list] == [
        [*begin, "--motion", "camera"],
        [*begin, "--motion", "model", "--image", photo, "--serve"],
    ]
