"""Kill ComfyUI at random moments and check that resumed runs lose and change nothing.

A real server makes a clip with saved segments. SIGKILL, which no program can catch, hits it at a random
moment between queueing and the end; after a restart it gets the same graph. The latent that it then saves
must equal that of an undisturbed run bit for bit. After every other kill the files get timestamps in the
future, as if the clock had been set back.

Run it in the environment that `python3 dev.py host` names::

    python -m benchmarks.endurance.kill --kills 50
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.comfyui_server import Server
from devtools.environment import find_host
from devtools.workspace import prepare_workspace

NAME = "kill test"
FUTURE = time.time() + 10 * 365 * 24 * 3600
RESUMED = re.compile(r'Checkpoint "kill test": (\d+) of (\d+) segments restored')


def graph(
    prefix: str, *, frames: int = 81, width: int = 128, seed: int = 1, checkpoint: str = NAME
) -> dict[str, Any]:
    """Return a graph in API format: camera move, Stage II with saved segments, saved latent."""
    size = {"width": width, "height": width // 2, "frames": frames}

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("LoadImage", image="life.jpg"),
        "2": node("SwiftI2V_CameraMotion", image=["1", 0], **size, pan_x=0.04, pan_y=0, zoom=1.1, rotate=0,
                  tilt=0, sway=0, easing="smooth", seed=7, fit="crop"),
        "3": node("VAELoader", vae_name="tiny_vae48.safetensors"),
        "4": node("SwiftI2V_AnchorEncode", image=["1", 0], motion=["2", 0], vae=["3", 0],
                  **{**size, "width": 2 * width, "height": width}, fit="crop", upscale="bicubic",
                  color_match=False),
        "5": node("SwiftI2V_LoadStageII", model_name="tiny_stage2_detail.safetensors", lora="none",
                  lora_strength=1, shift=5, weight_dtype="default"),
        "6": node("SwiftI2V_SegmentSampler", model=["5", 0], z_ref=["4", 0], seed=seed, steps=16, cfg=1,
                  sampler_name="euler_ancestral", denoise=1, segment_frames=3, neighbors=1,
                  context="bidirectional", time_positions="true", checkpoint=checkpoint),
        "7": node("SaveLatent", samples=["6", 0], filename_prefix=prefix),
    }  # fmt: skip


class KillTest:
    """A workspace whose server is killed.

    Parameters
    ----------
    folder
        New folder for models, photos and results.
    options
        More arguments for ComfyUI.
    """

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        prepare_workspace(folder)
        self.workspace, self.host = folder, find_host()
        self.options = ("--cache-none", *options)
        self.log = folder / "server.log"
        self.checkpoints = folder / "output" / "swifti2v_checkpoints"

    def server(self) -> Server:
        """Return a server that is not started."""
        return Server(self.host, self.workspace, log_path=self.log, extra_args=self.options)

    def queue(self, server: Server, prefix: str, **changes: Any) -> tuple[str, str]:
        """Queue the graph; return the ids of prompt and client, for `wait`."""
        client = uuid.uuid4().hex
        return server.queue(graph(prefix, **changes), client), client

    def saved(self, prefix: str) -> bytes:
        """Return the bytes of a saved latent, without the workflow in its header."""
        (path,) = (self.workspace / "output").glob(f"{prefix}_*.latent")
        data = path.read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :]

    def segments_saved(self) -> int:
        """Return the number of segments on disk."""
        return len(list(self.checkpoints.rglob("*.safetensors")))

    def clear(self) -> None:
        """Delete all saved segments."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def segments_resumed(self) -> int:
        """Return the number of segments that the last server resumed, from its log."""
        found = RESUMED.findall(self.log.read_text(encoding="utf-8", errors="replace"))
        return int(found[-1][0]) if found else 0


@dataclass
class Kill:
    """Result of one kill: its time, segments on disk and resumed, and whether the bits are equal."""

    seconds: float
    on_disk: int
    resumed: int
    equal: bool


def main() -> int:
    """Kill, compare and report; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swifti2v-kill-") as folder:
        kills = run(KillTest(Path(folder)), options.kills, random.Random(options.seed))
    unequal = sum(not kill.equal for kill in kills)
    lost = sum(kill.resumed < kill.on_disk for kill in kills)
    print(f"{len(kills) - unequal} of {len(kills)} results equal bit for bit")
    print(f"{sum(kill.on_disk > 0 for kill in kills)} kills left segments on disk")
    print(f"{sum(kill.resumed for kill in kills)} segments resumed, {lost} times fewer than on disk")
    return int(unequal + lost > 0)


def run(test: KillTest, count: int, moments: random.Random) -> list[Kill]:
    """Kill a server ``count`` times; each restart finishes the run and starts the next."""
    kills: list[Kill] = []
    server = test.server().__enter__()
    try:
        server.wait(*test.queue(server, "warm-up", checkpoint=""))
        began = time.monotonic()
        server.wait(*test.queue(server, "expected", checkpoint=""))
        whole = time.monotonic() - began
        expected = test.saved("expected")
        for number in range(count):
            test.clear()
            test.queue(server, f"killed-{number}")
            seconds = moments.uniform(0, whole)
            time.sleep(seconds)
            server.process.kill()
            server.process.wait()
            server.stop()
            on_disk = test.segments_saved()
            if number % 2:
                for path in test.checkpoints.rglob("*"):
                    os.utime(path, (FUTURE, FUTURE))
            server = test.server().__enter__()
            server.wait(*test.queue(server, f"resumed-{number}"))
            equal = test.saved(f"resumed-{number}") == expected
            kills.append(Kill(seconds, on_disk, test.segments_resumed(), equal))
            print(f"kill {number + 1} of {count}: {kills[-1]}", flush=True)
    finally:
        server.stop()
    return kills


if __name__ == "__main__":
    sys.exit(main())
