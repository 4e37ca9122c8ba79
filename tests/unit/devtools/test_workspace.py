"""The ComfyUI base directory."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from devtools import paths
from devtools.workspace import MODELS, prepare_workspace

Patch = pytest.MonkeyPatch


@pytest.fixture
def pack(home: Path, monkeypatch: Patch) -> Path:
    """A small repository with a pack and demo assets."""
    (home / "__init__.py").write_text("pack")
    (home / "nodes" / "__pycache__").mkdir(parents=True)
    (home / "nodes" / "a.py").write_text("a")
    assets = home / "tests" / "assets" / "tiny"
    (assets / "photos").mkdir(parents=True)
    for name in (*MODELS, "photos/life.jpg"):
        (assets / name).write_text(name)
    monkeypatch.setattr(paths, "ASSETS", assets)
    return home


def test_workspace_holds_pack_models_and_photos(pack: Path) -> None:
    workspace = pack / ".demo"
    prepare_workspace(workspace)
    vae = workspace / "models" / "vae" / "tiny_vae48.safetensors"
    before = vae.stat().st_ctime_ns
    (paths.ASSETS / "photos" / "life.jpg").write_text("newer")
    prepare_workspace(workspace)
    assert vae.stat().st_ctime_ns == before
    assert vae.read_text() == "tiny_vae48.safetensors"
    assert (workspace / "input" / "life.jpg").read_text() == "newer"
    assert (workspace / "custom_nodes" / "swifti2v").resolve() == pack
    assert len(list((workspace / "models" / "diffusion_models").iterdir())) == 2


def test_pack_is_copied_where_links_are_forbidden(pack: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError("a required privilege is not held")))
    prepare_workspace(pack / ".demo")
    (pack / "nodes" / "a.py").write_text("newer")
    prepare_workspace(pack / ".demo")
    target = pack / ".demo" / "custom_nodes" / "swifti2v"
    assert not target.is_symlink()
    assert (target / "nodes" / "a.py").read_text() == "newer"
    assert {"tests", ".demo", "__pycache__"}.isdisjoint(path.name for path in target.rglob("*"))
