"""The demo, without a ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from devtools import demo, paths, terminal

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


def test_find_video_takes_the_saved_video() -> None:
    picture = {"images": [{"filename": "a.png", "subfolder": ""}]}
    video = {"images": [{"filename": "c.mp4", "subfolder": "s"}], "animated": [True]}
    entry = {"outputs": {"1": picture, "2": {"text": ["words"]}, "3": video}}
    assert demo.find_video(entry, Path("ws")) == Path("ws/output/s/c.mp4")
    with pytest.raises(terminal.DevError, match="saved no video"):
        demo.find_video({"outputs": {"1": picture}}, Path("ws"))
