"""What ComfyUI reports about prompts, as sentences and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devtools.prompts import find_video, refusal_sentences
from devtools.terminal import DevError


def test_refused_graphs_give_one_sentence_per_problem() -> None:
    missing = {"message": "Value not in list", "details": "vae_name: 'x' not in []"}
    empty = {"message": "Prompt has no image", "details": ""}
    nodes = {"4": {"class_type": "VAELoader", "errors": [missing, empty]}}
    body: dict[str, Any] = {"error": {"message": "Node 'Nope' not found."}, "node_errors": nodes}
    assert refusal_sentences(json.dumps(body).encode()).splitlines() == [
        "Node 4 (VAELoader): Value not in list: vae_name: 'x' not in []",
        "Node 4 (VAELoader): Prompt has no image",
    ]
    body["node_errors"] = []
    words = "ComfyUI refused the workflow: Node 'Nope' not found."
    assert refusal_sentences(json.dumps(body).encode()) == words


def test_find_video_takes_the_saved_video() -> None:
    picture = {"images": [{"filename": "a.png", "subfolder": ""}]}
    video = {"images": [{"filename": "c.mp4", "subfolder": "s"}], "animated": [True]}
    entry = {"outputs": {"1": picture, "2": {"text": ["words"]}, "3": video}}
    assert find_video(entry, Path("ws")) == Path("ws/output/s/c.mp4")
    with pytest.raises(DevError, match="saved no video"):
        find_video({"outputs": {"1": picture}}, Path("ws"))
