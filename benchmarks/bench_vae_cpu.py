"""The Wan2.2 VAE on a CPU, ours against ComfyUI's own way in the same run, in one table.

    COMFYUI_PATH=FOLDER python benchmarks/bench_vae_cpu.py

The real widths at a small latent, float32, random weights: what strips, resting caches and streaming
cost or save where nothing but arithmetic and copies counts. About 2 minutes on two free cores; on shared
cores look at the ranges before believing a median.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parent))

import command_line
from bench_2k import run_rows
from measure import measure_ceilings

PLANS = {
    "1 strip": (1, 1, None),
    "2 strips": (2, 1, None),
    "4 strips": (4, 1, None),
    "4 resting strips": (4, 2, torch.device("cpu")),
}


def main() -> None:
    """Measure and report."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--size", type=command_line.pixel_size, default=(160, 96), metavar="WxH")
    parser.add_argument("--frames", type=int, default=9)
    options = parser.parse_args()
    command_line.boot(options.comfyui, cpu=True)
    import host_models
    from rows import Sizes, Subject

    ceilings = measure_ceilings(host_models.device())
    subject = Subject(Sizes(*options.size, options.frames, divisor=options.width_divisor), PLANS)
    measurements = list(
        run_rows(subject, ["decode", "encode"], [0], options.only, options.repeats, time.monotonic() + 1200)
    )
    title = f"Wan2.2 VAE on a CPU, {options.size[0]}x{options.size[1]}, {options.frames} frames"
    command_line.report(title, measurements, ceilings, options, host_models.device())


if __name__ == "__main__":
    main()
