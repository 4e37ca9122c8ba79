"""Noise reshifting in Stage I: figures of clips from the tiny motion model, which have no truth.

The nodes run in a real ComfyUI in this process; `swifti2v_train.evaluation.metrics` explains the figures::

    OMP_NUM_THREADS=1 python -m benchmarks.quality.stage_one_report --comfyui FOLDER --sheets FOLDER
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from benchmarks.command_line import comfyui_version
from benchmarks.quality.tiny_comfyui import Bench, comfyui, load, parser, run_node
from swifti2v_train.data.photos import read_photo
from swifti2v_train.evaluation.contact_sheets import save_sheet, strip
from swifti2v_train.evaluation.figures import Row, quality_table
from swifti2v_train.evaluation.metrics import (
    laplacian_ratio,
    laplacian_slope,
    luma_pulse,
    measure_clip,
    motion_amount,
)

SEED, STEPS, SIZE = 1, 4, (640, 320)
"""The tiny Stage I was trained for this size and up to 33 frames."""

COLUMNS = {"Laplacian": 3, "slope": 4, "pulse, lag 4": 2, "pulse, lag 12": 2, "motion": 2, "seconds": 1}
"""Decimals by column."""

RESHIFTING: dict[str, dict[str, Any]] = {
    "reshifting off": {},
    "reshifting on": {"reshift_steps": 1},
    "reshifting on, noise matched": {"reshift_steps": 1, "reshift_match_snr": True},
}
"""Inputs of the motion sampler: one of four steps is the least possible."""


def measure(
    bench: Bench, photo: torch.Tensor, size: tuple[int, int], frames: int, options: dict[str, Any]
) -> tuple[Row, torch.Tensor]:
    """Return the figures and frames of a clip that Stage I makes of a photo; seconds include the decode."""
    begin = time.monotonic()
    inputs = {"model_high_noise": bench.stage_one, "vae": bench.vae, "image": photo, "frames": frames}
    inputs |= {"width": size[0], "height": size[1], "seed": SEED, "steps": STEPS, **options}
    made = run_node(bench.pack, "SwiftI2V_MotionSampler", **inputs)[0].clamp(0, 1)
    statistics = measure_clip(made)
    row = {
        "Laplacian": float(laplacian_ratio(statistics)[-1]),
        "slope": laplacian_slope(statistics),
        "pulse, lag 4": luma_pulse(statistics, 4),
        "pulse, lag 12": luma_pulse(statistics, 12),
        "motion": motion_amount(statistics) * 255,
        "seconds": time.monotonic() - begin,
    }
    return row, made


def main() -> None:
    """Measure every photo with every way of reshifting and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, default=33)
    options = arguments.parse_args()
    rows, strips = [], []
    with comfyui(options.comfyui, options.models) as pack:
        bench = load(pack, options.models)
        for path in sorted(options.photos.glob("*.jpg")):
            for variant, inputs in RESHIFTING.items():
                row, made = measure(bench, read_photo(path), SIZE, options.frames, inputs)
                rows.append({"frames": options.frames, "clip": path.stem, "variant": variant, **row})
                strips.append(strip(f"{path.stem}, {variant}", made))
                print(f"{path.stem}, {variant}: {row}", file=sys.stderr, flush=True)
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        save_sheet(strips, options.sheets / f"stage_one_{options.frames}.jpg")
    size = f"{SIZE[0]}x{SIZE[1]}"
    print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}, {size}\n")
    print(quality_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
