"""Many runs on one real server: live tensors, open files and memory after each, in one table.

    python -m benchmarks.endurance.soak --runs 200

Every run is the demo's graph at a small size, with a new seed, size and length; about 2 s per run on two
CPU cores. Between runs, after a garbage collection, a probe in the server counts the tensors that Python
holds and the open files of the process (sockets included), and reads its resident memory. Tensors and files
must not grow after the tenth run; the exit status is 1 if they do. Resident memory is noisy: allocators
keep freed memory in pools, sizes differ between runs, and ComfyUI keeps the history of every prompt.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import uuid
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command_line import ROOT
from devtools.comfyui_server import Server
from devtools.environment import find_host
from devtools.workspace import prepare_workspace

PROBE = """
import gc, os
import psutil, torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}

@PromptServer.instance.routes.get("/swifti2v_soak")
async def count(request):
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    process = psutil.Process()
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return web.json_response({"tensors": tensors, "files": files, "resident": process.memory_info().rss})
"""
"""A custom node pack that answers with the counts."""

SIZES = ((128, 64), (192, 96), (256, 128), (160, 64), (192, 128), (256, 64))
"""Sizes of the video; the motion is half as large. At least as many as lengths."""

LENGTHS = (9, 17, 13)

WARM = 10
"""Number of the run after which nothing may grow."""


@dataclass(frozen=True)
class Counts:
    """What the server's process holds between runs; ``resident`` in bytes."""

    tensors: int
    files: int
    resident: int


def prompt_of(run: int) -> dict[str, Any]:
    """Return the demo's graph with the seed, size and length of a run."""
    prompt = json.loads((ROOT / "tests" / "workflows" / "swifti2v_demo.json").read_text())
    width, height = SIZES[run % len(SIZES)]
    frames = LENGTHS[run % len(LENGTHS)]
    changes = {
        "SwiftI2V_CameraMotion": {
            "width": width // 2 // 32 * 32,
            "height": height // 2 // 32 * 32,
            "frames": frames,
            "seed": run,
        },
        "SwiftI2V_AnchorEncode": {"width": width, "height": height, "frames": frames},
        "SwiftI2V_SegmentSampler": {"seed": run},
    }
    for node in prompt.values():
        node["inputs"].update(changes.get(node["class_type"], {}))
    return prompt


def soak(runs: int, comfyui: str | None, workspace: Path) -> list[Counts]:
    """Run the graph ``runs`` times on a server and return the counts after each run."""
    prepare_workspace(workspace)
    probe = workspace / "custom_nodes" / "soak_probe"
    probe.mkdir(exist_ok=True)
    (probe / "__init__.py").write_text(PROBE)
    held = []
    with Server(find_host(comfyui), workspace, log_path=workspace / "server.log") as server:
        for run in range(runs):
            client = uuid.uuid4().hex
            server.wait(server.queue(prompt_of(run), client), client, timeout=600)
            counts = server.get("/swifti2v_soak")
            held.append(Counts(counts["tensors"], counts["files"], counts["resident"]))
            print(f"\rrun {run + 1} of {runs}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return held


def table(held: list[Counts]) -> str:
    """Return the counts after some runs, and their range from the tenth run on, in Markdown."""
    lines = ["| after run | live tensors | open files | resident MiB |", "|---|---|---|---|"]
    numbers = sorted({1, WARM, len(held), *range(50, len(held), 50)} & set(range(1, len(held) + 1)))
    for number in numbers:
        counts = held[number - 1]
        lines.append(f"| {number} | {counts.tensors} | {counts.files} | {counts.resident / 2**20:.0f} |")
    columns = zip(*map(astuple, held[WARM - 1 :]), strict=True)
    tensors, files, resident = ((min(column), max(column)) for column in columns)
    lines.append(
        f"| {WARM} to {len(held)}: range | {tensors[0]} to {tensors[1]} | {files[0]} to {files[1]} | "
        f"{resident[0] / 2**20:.0f} to {resident[1] / 2**20:.0f} |"
    )
    return "\n".join(lines)


def main() -> int:
    """Run and print the table; the exit status is 1 if tensors or files grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200, help="more than 10, default 200")
    parser.add_argument("--comfyui", metavar="VERSION", help="one of those that dev.py fetches")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        held = soak(options.runs, options.comfyui, Path(folder))
    print(table(held))
    last, warm = held[-1], held[WARM - 1]
    return int(last.tensors > warm.tensors or last.files > warm.files)


if __name__ == "__main__":
    raise SystemExit(main())
