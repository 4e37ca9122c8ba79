"""The demo, without a ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devtools import demo, paths

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", demo.DEMOS.values())
def test_photo_reaches_graph_and_embedded_workflow(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(paths, "WORKSPACE", tmp_path)
    (tmp_path / "input").mkdir()
    photo = tmp_path / "Mein Bild (1).JPG"
    photo.write_text("data")
    *mine, placed = demo.demo_graphs(name, photo)
    *shipped, default = demo.demo_graphs(name, None)
    assert placed == tmp_path / "input" / "photo_Mein_Bild_1_.JPG"
    assert placed.read_text() == "data"
    assert default == tmp_path / "input" / "life.jpg"
    assert json.dumps(mine) == json.dumps(shipped).replace('"life.jpg"', f'"{placed.name}"')
