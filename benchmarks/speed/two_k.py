"""Ours against ComfyUI's own way at 2560x1408, in a real ComfyUI in this process, in one table.

    COMFYUI_PATH=FOLDER python -m benchmarks.speed.two_k --rows window,decode --cap 0 24

Models have the real shapes and random weights; no weights file is read or written. ComfyUI needs only the
Python files of ``comfy``, ``comfy_api`` and ``comfy_execution``, with ``protocol.py``, ``folder_paths.py``,
``latent_preview.py`` and ``node_helpers.py`` (6 MB; the version comes from ``comfyui_version.py``), the
packages they import (av, comfy-aimdo, comfy-kitchen, einops, psutil, scipy, torchsde, transformers,
torchvision, torchaudio) and kornia.

Rows, with estimates for one H200 at 81 frames, one cap and 3 runs each (241 frames: three times as long;
ComfyUI's samplings of the whole clip eight times):

    window   one forward over 5 latent frames, per step of a sampling                 1 min
    decode   latent to frames: ComfyUI's way, its tiles, ours by free memory or force 6 min
    encode   frames to latent                                                         1 min
    stage2   4 steps over the clip: whole, in context windows, in our segments        5 min
    job      everything after Stage I, to the video file                              6 min
    stage1   A14B at 640x352, 4 steps and its decode; only on request                 2 min

``--cap 24`` emulates a 24 GiB card: ComfyUI and the pack see that much memory, and the allocator gives no
more. A case that fails, for example by running out of memory, is a row of the table. Every case is printed
when it is done. ``--seconds`` limits the run: cases not started by then are reported as not run. Smoke test
without a GPU: ``--cpu --size 64x32 --frames 9 --width-divisor 16 --repeats 1``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING

import torch

from benchmarks import command_line
from benchmarks.speed.measure import Measurement, failure, measure, measure_ceilings

if TYPE_CHECKING:  # needs a booted ComfyUI
    from benchmarks.speed.subject import Subject

DEFAULT_ROWS = "decode,encode,window,stage2,job"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--rows", default=DEFAULT_ROWS, help=f"default {DEFAULT_ROWS}; also stage1")
    parser.add_argument("--size", type=command_line.pixel_size, default=(2560, 1408), metavar="WxH")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=4, help="steps of a sampling")
    parser.add_argument(
        "--channels", type=int, choices=(48, 96), default=96, help="plain or concat weights"
    )
    parser.add_argument("--cap", type=float, nargs="+", default=[0], metavar="GIB", help="0: whole device")
    parser.add_argument("--seconds", type=float, default=540, help="start no new case after this long")
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled cases")
    parser.add_argument("--cpu", action="store_true", help="run without a GPU")
    return parser.parse_args()


def run_rows(
    subject: Subject,
    rows: Sequence[str],
    caps: Sequence[float],
    only: str,
    repeats: int,
    deadline: float = inf,
) -> Iterator[Measurement]:
    """Yield the measurements of all cases of the named rows, under every cap."""
    from benchmarks.speed import wan_models
    from benchmarks.speed.rows import ROWS

    for row in rows:
        try:
            cases = [case for case in ROWS[row](subject) if only in case.name]
        except Exception as error:  # the models alone can exceed the memory
            yield Measurement(row, "all", failure=failure(error))
            continue
        for cap in caps:
            for case in cases:
                wan_models.unload_models()
                with wan_models.memory_cap(cap):
                    yield measure(case, repeats, wan_models.device(), deadline, cap)


def main() -> None:
    """Measure and report."""
    options, begin = arguments(), time.monotonic()
    command_line.boot(options.comfyui, options.cpu or not torch.cuda.is_available())
    from benchmarks.speed import wan_models
    from benchmarks.speed.subject import Sizes, Subject

    sizes = Sizes(*options.size, options.frames, options.steps, options.channels, options.width_divisor)
    subject = Subject(sizes, compiled=not options.no_compile)
    ceilings = measure_ceilings(wan_models.device())
    rows, deadline = options.rows.split(","), begin + options.seconds
    found = run_rows(subject, rows, options.cap, options.only, options.repeats, deadline)
    measurements = command_line.print_each(found, ceilings)
    title = f"{options.size[0]}x{options.size[1]}, {options.frames} frames"
    command_line.report(title, measurements, ceilings, options, wan_models.device())


if __name__ == "__main__":
    main()
