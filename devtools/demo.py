"""Turn a photo into a moving clip in a real ComfyUI.

`python3 dev.py demo` starts this module in ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from devtools import paths
from devtools.comfyui_server import Server
from devtools.environment import Host, find_host
from devtools.programs import call, module_command
from devtools.prompts import find_video
from devtools.terminal import DevError, LiveLine, exit_code
from devtools.workspace import DEMOS, prepare_workspace


def demo(image: Path | None, motion: str, serve: bool) -> None:
    """Make the clip, then print its figures, its path and its contact sheet."""
    started = time.monotonic()
    if motion == "model":
        print("The tiny Stage I model melts large motion; the default, --motion camera, does not.")
    host = find_host()
    prepare_workspace(paths.WORKSPACE)
    prompt, workflow, photo = demo_graphs(DEMOS[motion], image)
    if serve:
        listed = paths.WORKSPACE / "user" / "default" / "workflows"
        ignored = shutil.ignore_patterns("*.jpg")
        shutil.copytree(paths.REPO / "workflows", listed, ignore=ignored, dirs_exist_ok=True)
    with contextlib.closing(LiveLine(sys.stdout)) as live:
        live.show(f"Starting ComfyUI {host.version} ...")
        with Server(host, paths.WORKSPACE, log_path=paths.WORKSPACE / "server.log") as server:
            video = render(server, prompt, workflow, live)
            sheet = report(host, video, photo, motion)
            print(f"Video:         {video}")
            print(f"Contact sheet: {sheet}")
            print(f"Total time:    {time.monotonic() - started:.1f} s")
            if serve:
                serve_page(server)


def demo_graphs(name: str, image: Path | None) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the demo as API-format graph and as UI workflow, and the path of its photo.

    The user's `image`, if any, replaces the photo in both.
    """
    prompt = json.loads((paths.REPO / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    workflow = json.loads((paths.REPO / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    loader = next(node for node in prompt.values() if node["class_type"] == "LoadImage")
    if image is not None:
        # The prefix protects the demo's own photos.
        photo = f"photo_{re.sub(r'[^A-Za-z0-9]+', '_', image.stem)}{image.suffix}"
        shutil.copyfile(image, paths.WORKSPACE / "input" / photo)
        loader["inputs"]["image"] = photo
        shown = next(node for node in workflow["nodes"] if node["type"] == "LoadImage")
        shown["widgets_values"][0] = photo
    return prompt, workflow, paths.WORKSPACE / "input" / loader["inputs"]["image"]


def render(server: Server, prompt: dict[str, Any], workflow: dict[str, Any], live: LiveLine) -> Path:
    """Run the graph with one live line; return the saved video."""
    names = {node_id: node["_meta"]["title"] for node_id, node in prompt.items()}
    client_id, started = uuid.uuid4().hex, time.monotonic()
    prompt_id = server.queue(prompt, client_id, {"extra_pnginfo": {"workflow": workflow}})
    entry = server.wait(
        prompt_id, client_id, lambda now: live.show(now.line(names, time.monotonic() - started))
    )
    live.close()
    return find_video(entry, server.workspace)


def report(host: Host, video: Path, photo: Path, motion: str) -> Path:
    """Print the figures of a clip and write its contact sheet; return the path of the sheet."""
    sheet = video.with_name(video.stem.rstrip("_") + "_sheet.png")
    command = [*module_command(host.python, "benchmarks.quality.demo_report"), "--motion", motion]
    command += ["--video", video, "--photo", photo, "--comfyui", host.folder, "--sheet", sheet]
    if call(command):
        raise DevError(f"The report on the clip failed; the clip itself is {video}.")
    return sheet


def serve_page(server: Server) -> None:
    """Keep the web page open until Ctrl-C."""
    print(f"ComfyUI is open at {server.url}, the workflows are in its sidebar; Ctrl-C stops it.")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            server.check_alive()
            time.sleep(1)


def main() -> int:
    """Run the demo with the arguments that `dev.py` has checked; return 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--image", type=Path)
    parser.add_argument("--motion", required=True)
    parser.add_argument("--serve", action="store_true")
    arguments = parser.parse_args()
    demo(arguments.image, arguments.motion, arguments.serve)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
