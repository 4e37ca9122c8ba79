"""The real server, with the pack in custom_nodes as a user has it."""

import copy
import json
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from devtools.comfyui_server import Server  # noqa: E402
from devtools.environment import find_host  # noqa: E402
from devtools.workspace import prepare_workspace  # noqa: E402


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A ComfyUI base directory with pack, tiny models and photos."""
    path = tmp_path_factory.mktemp("comfy")
    prepare_workspace(path)
    return path


@pytest.fixture(scope="session")
def server(workspace):
    """One server for all tests: what one run leaves behind would show in the next."""
    # Without the host's cache of results, the same graph is computed again.
    options = {"log_path": workspace / "server.log", "extra_args": ("--cache-none",)}
    with Server(find_host(), workspace, **options) as running:
        yield running


@pytest.fixture(scope="session")
def graph():
    """Read a shipped graph; ``changes`` are {class_type: {input: value}}."""

    def read(name, changes=None):
        prompt = json.loads((ROOT / "tests" / "workflows" / f"{name}.json").read_text())
        for node in prompt.values():
            node["inputs"].update((changes or {}).get(node["class_type"], {}))
        return prompt

    return read


@pytest.fixture(scope="session")
def play(server):
    """Queue a graph and wait; returns (history entry, progress after every message)."""

    def run(prompt, workflow=None):
        client, seen = uuid.uuid4().hex, []
        extra = {"extra_pnginfo": {"workflow": workflow}} if workflow else None
        prompt_id = server.queue(prompt, client, extra)
        entry = server.wait(prompt_id, client, lambda now: seen.append(copy.copy(now)), timeout=900)
        return entry, seen

    return run
