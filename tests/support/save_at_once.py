"""Saves videos under one name from two processes at once, and counts the files.

Run with ``COMFYUI_PATH=FOLDER python tests/support/save_at_once.py RUNS``. What the processes run
is the pack's own: each reserves a name and writes five frames, again and again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import types
from fractions import Fraction
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "video/clip"


def save(folder: str, runs: int) -> None:
    """Write videos into an output folder and print their names."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    for name, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        package = types.ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package
    arguments, sys.argv = sys.argv, sys.argv[:1]
    import folder_paths
    import torch

    output_files = import_module("pack.nodes.comfyui.output_files")
    video_file = import_module("pack.nodes.pipeline.video_file")
    sys.argv = arguments
    folder_paths.set_output_directory(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    for run in range(runs):
        with output_files.reserved_output_file(PREFIX, "mp4", 64, 64) as (path, _):
            codec = video_file.CODECS["h264"]
            with video_file.VideoFile(path, 64, 64, Fraction(16), codec, 17, {}) as video:
                for frame in range(5):
                    video.write(torch.full((64, 64, 3), 10 * frame + run, dtype=torch.uint8))
        print(path.name, flush=True)


def save_at_once(folder: str, runs: int, processes: int = 2) -> list[str]:
    """Return the names of the files that processes say they have written."""
    command = [sys.executable, "-I", "-B", __file__, folder, str(runs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(processes)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in started for name in process.communicate()[0].split()]
    assert not any(process.returncode for process in started)
    return names


if __name__ == "__main__":
    if len(sys.argv) == 3:
        save(sys.argv[1], int(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            names = save_at_once(folder, int(sys.argv[1]))
            found = sorted(path.name for path in Path(folder, PREFIX).parent.iterdir())
        print(f"{len(names)} written, {len(set(names))} names, {len(found)} files")
        sys.exit(len(set(names)) != len(names) or found != sorted(names))
