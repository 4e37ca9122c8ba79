"""Writes the shipped workflows: the UI's own format to workflows/, the API format beside this file.

    .venv/bin/python tests/workflows/build.py            write all files
    .venv/bin/python tests/workflows/build.py --check    fail if a file differs from what would be written

The graphs are described once, in shipped.py. Names, order and types of inputs come from a running
ComfyUI's /object_info: one is started, unless ``--object-info FILE`` gives a saved answer. Run it
again after every change to a node's schema or to the version in pyproject.toml.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

import shipped  # noqa: E402
from graph import LIST, MARGIN, TITLE, Graph, Group, Node, NodeType, Output  # noqa: E402

from devtools.comfyui_download import DEFAULT_VERSION  # noqa: E402
from devtools.comfyui_server import Server  # noqa: E402
from devtools.environment import find_host  # noqa: E402
from devtools.workspace import prepare_workspace  # noqa: E402

SHIPPED = ROOT / "workflows"
FRONTEND_VERSION = "1.47.12"  # what ComfyUI 0.30.0 asks for
WINDOW = (1600, 900)  # what a workflow opens in at first
WINDOW_BORDER = (90, 110)  # side bar and tabs
LEGIBLE = 0.6  # below, the canvas leaves out all text


# --- The two file formats -------------------------------------------------------------------------


def api_format(graph: Graph) -> dict[str, Any]:
    """Return what ComfyUI's /prompt takes."""
    return {
        str(node.id): {
            "inputs": {
                key: [str(value.node), value.slot] if isinstance(value, Output) else value
                for key, value in node.values.items()
            },
            "class_type": node.type.name,
            "_meta": {"title": node.title or node.type.title},
        }
        for node in graph.nodes
        if node.type is not None
    }


def ui_format(graph: Graph) -> dict[str, Any]:
    """Return what the UI saves and what users drop on it."""
    nodes = [ui_note(node) if node.type is None else ui_node(node, node.type) for node in graph.nodes]
    for order, node in enumerate(execution_order(graph)):
        nodes[node.id - 1]["order"] = order
    links = ui_links(graph, {node["id"]: node for node in nodes})
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"swifti2v/{graph.name}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [ui_group(number, group) for number, group in enumerate(graph.groups, 1)],
        "config": {},
        "extra": {
            "ds": view(graph),
            "frontendVersion": FRONTEND_VERSION,
            "workflowRendererVersion": "LG",  # positions are those of the classic canvas
        },
        "version": 0.4,
    }


def ui_base(node: Node, name: str) -> dict[str, Any]:
    """Return what nodes and notes have in common."""
    return {
        "id": node.id,
        "type": name,
        "pos": [node.x, node.y],
        "size": [node.width, node.height],
        "flags": {},
        "order": 0,
        "mode": 0,
    }


def ui_note(node: Node) -> dict[str, Any]:
    return {
        **ui_base(node, "MarkdownNote"),
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [node.text],
        "color": "#432",
        "bgcolor": "#653",
    }


def ui_node(node: Node, kind: NodeType) -> dict[str, Any]:
    outputs = [
        {
            "localized_name": name,
            "name": name,
            **({"shape": LIST} if is_list else {}),
            "type": type_,
            "links": None,
        }
        for (name, type_), is_list in zip(kind.outputs, kind.lists, strict=True)
    ]
    properties: dict[str, Any] = {
        "cnr_id": kind.pack,
        "ver": pack_version() if kind.pack == "swifti2v" else DEFAULT_VERSION,
        "Node name for S&R": kind.name,
    }
    if node.models:
        properties["models"] = node.models
    stored = [value for item in kind.widgets for value in item.stored(node.values[item.name])]
    return {
        **ui_base(node, kind.name),
        "inputs": [slot for item in kind.inputs for slot in item.slots()],
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": properties,
        **({"widgets_values": stored} if stored else {}),
    }


def ui_links(graph: Graph, stored: dict[int, dict[str, Any]]) -> list[list[Any]]:
    """Enter the links into the stored nodes and return the list of them."""
    links: list[list[Any]] = []
    for node in graph.nodes:
        for slot, entry in enumerate(stored[node.id]["inputs"]):
            source = node.values.get(entry["name"])
            if not isinstance(source, Output):
                continue
            link = len(links) + 1
            links.append([link, source.node, source.slot, node.id, slot, source.type])
            entry["link"] = link
            output = stored[source.node]["outputs"][source.slot]
            output["links"] = [*(output["links"] or ()), link]
    return links


def ui_group(number: int, group: Group) -> dict[str, Any]:
    return {
        "id": number,
        "title": group.title,
        "bounding": group.bounding(),
        "color": group.color,
        "flags": {},
    }


def execution_order(graph: Graph) -> list[Node]:
    """Return the nodes in the order that the UI numbers them: those that need nothing go first."""
    needs = {node.id: [v for v in node.values.values() if isinstance(v, Output)] for node in graph.nodes}
    waiting = {number: len(sources) for number, sources in needs.items()}
    ordered = [node for node in graph.nodes if not waiting[node.id]]
    for source in ordered:  # grows while it is read
        for slot in range(len(source.type.outputs) if source.type else 0):
            for node in graph.nodes:
                links = sum(value[:2] == (source.id, slot) for value in needs[node.id])
                waiting[node.id] -= links
                if links and not waiting[node.id]:
                    ordered.append(node)
    return ordered


def view(graph: Graph) -> dict[str, Any]:
    """Return the zoom and position at which the graph is seen: all of it, if that is legible."""
    boxes = [group.bounding() for group in graph.groups]
    boxes += [[node.x, node.y - TITLE, node.width, node.height + TITLE] for node in graph.nodes]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    width, height = (max(box[i] + box[i + 2] for box in boxes) - (left, top)[i] for i in (0, 1))
    room = [side - border - MARGIN for side, border in zip(WINDOW, WINDOW_BORDER, strict=True)]
    scale = round(max(min(room[0] / width, room[1] / height, 1.0), LEGIBLE), 3)
    offset = [round(side / scale - start) for side, start in zip(WINDOW_BORDER, (left, top), strict=True)]
    return {"scale": scale, "offset": offset}


def pack_version() -> str:
    """Read the pack's version from pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return text.split('\nversion = "', 1)[1].split('"', 1)[0]


# --- The files ------------------------------------------------------------------------------------


def files(object_info: dict[str, Any]) -> dict[Path, str]:
    """Return the text of every file by its path."""
    texts: dict[Path, str] = {}
    for describe in shipped.ALL:
        graph = Graph(describe.__name__, object_info)
        describe(graph)
        for folder, content in ((SHIPPED, ui_format(graph)), (HERE, api_format(graph))):
            texts[folder / f"{graph.name}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return texts


def differing(texts: dict[Path, str]) -> list[Path]:
    """Return the files that are missing or hold something else."""
    return [p for p, text in texts.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]


def fetch_object_info() -> dict[str, Any]:
    """Start a ComfyUI with the pack and ask it about its nodes."""
    host = find_host()
    with tempfile.TemporaryDirectory(prefix="swifti2v-build-") as folder:
        workspace = Path(folder)
        prepare_workspace(workspace)
        with Server(host, workspace, log_path=workspace / "server.log") as server:
            info: dict[str, Any] = server.get("/object_info")
    return info


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Write the shipped workflows and their API twins.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    parser.add_argument("--object-info", type=Path, metavar="FILE", help="a saved /object_info answer")
    arguments = parser.parse_args()
    if arguments.object_info:
        info = json.loads(arguments.object_info.read_text(encoding="utf-8"))
    else:
        info = fetch_object_info()
    texts = files(info)
    stale = differing(texts)
    for path in stale:
        if not arguments.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
        print(("differs: " if arguments.check else "wrote ") + str(path.relative_to(ROOT)))
    return int(bool(arguments.check and stale))


if __name__ == "__main__":
    sys.exit(main())
