"""The Wan2.2 VAE on a CPU: ours against ComfyUI's own way in the same run, in one table.

    COMFYUI_PATH=FOLDER python -m benchmarks.speed.vae_cpu

Quarter-width models (``--width-divisor 1`` for full width, 16 times as long), a small latent, float32 and
random weights show what strips, groups of strips and streaming cost or save in arithmetic and copies. About
2 minutes with one thread. On shared cores set OMP_NUM_THREADS=1, since threads that wait for each other
take many times as long, and read the ranges before trusting a time. A latent this small is mostly halo:
strips look far more expensive here than at 2560x1408.
"""

from __future__ import annotations

from benchmarks import command_line
from benchmarks.speed.measure import measure_ceilings
from benchmarks.speed.two_k import run_rows

PLANS = {
    "1 strip": (1,),
    "2 strips": (2,),
    "4 strips": (4,),
    "4 strips, one at a time": (4, 4, 4, 3),
}


def main() -> None:
    """Measure and report."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--size", type=command_line.pixel_size, default=(128, 64), metavar="WxH")
    parser.add_argument("--frames", type=int, default=9)
    parser.set_defaults(width_divisor=4)
    options = parser.parse_args()
    command_line.boot(options.comfyui, cpu=True)
    from benchmarks.speed import wan_models
    from benchmarks.speed.subject import Sizes, Subject

    subject = Subject(Sizes(*options.size, options.frames, divisor=options.width_divisor), PLANS)
    ceilings = measure_ceilings(wan_models.device())
    found = run_rows(subject, ["decode", "encode"], [0], options.only, options.repeats)
    measurements = command_line.print_each(found, ceilings)
    title = f"Wan2.2 VAE on a CPU, {options.size[0]}x{options.size[1]}, {options.frames} frames"
    command_line.report(title, measurements, ceilings, options, wan_models.device())


if __name__ == "__main__":
    main()
