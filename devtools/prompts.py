"""What ComfyUI reports about a queued prompt: progress, result, refusal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.terminal import DevError, clock


@dataclass
class Progress:
    """Where a running prompt stands."""

    node: str = ""
    value: float = 0.0
    maximum: float = 1.0
    previews: int = 0

    def update(self, message: str | bytes) -> str:
        """Read one websocket message; return its type, "" for a binary one."""
        if isinstance(message, bytes):
            self.previews += message.startswith(b"\0\0\0\1")
            return ""
        event = json.loads(message)
        data = event["data"]
        if event["type"] == "executing" and data["node"]:
            self.node, self.value, self.maximum = data["node"], 0.0, 1.0
        elif event["type"] == "progress":
            self.node, self.value, self.maximum = data["node"], data["value"], data["max"]
        return str(event["type"])

    def line(self, names: dict[str, str], elapsed: float) -> str:
        """Describe the progress: node, step, percent of that node, elapsed time."""
        name = names.get(self.node, "Waiting for the first node")
        if self.maximum <= 1:  # ComfyUI counts a node that reports no steps from 0 to 1
            return f"{name}, {clock(elapsed)}"
        percent = 100 * self.value / self.maximum
        return f"{name}: step {self.value:g}/{self.maximum:g}, {percent:.0f} %, {clock(elapsed)}"


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a history entry of a finished prompt, or raise DevError with the reason of its failure."""
    status = entry["status"]
    if status["status_str"] == "success":
        return entry
    for event, data in status["messages"]:
        if event == "execution_error":
            raise DevError(f"The node {data['node_type']} failed: {data['exception_message'].strip()}")
    raise DevError("The workflow was interrupted.")


def refusal_sentences(body: bytes) -> str:
    """Turn ComfyUI's refusal of a graph into one sentence per problem."""
    answer = json.loads(body)
    sentences = [
        f"Node {node_id} ({node['class_type']}): {error['message']}: {error['details']}".rstrip(": ")
        for node_id, node in (answer["node_errors"] or {}).items()
        for error in node["errors"]
    ]
    return "\n".join(sentences) or f"ComfyUI refused the workflow: {answer['error']['message']}"


def find_video(entry: dict[str, Any], workspace: Path) -> Path:
    """Return the video file that a history entry names as saved."""
    for output in entry["outputs"].values():
        for item in output.get("images", ()):
            if item["filename"].endswith((".mp4", ".webm")):
                return workspace.joinpath("output", item["subfolder"], item["filename"])
    raise DevError("The workflow finished, but it saved no video.")
