"""Retakes against the untouched clip: seam energy at both ends of the segment that was made again.

A finished clip is made from a drawn camera move (see `stage_two_report`). Its inner segments are then made
again one by one with another seed, in three ways: as the node does; without the finished frames after the
segment; and cut out of a whole run with that seed. All other frames must keep their bits::

    OMP_NUM_THREADS=1 python -m benchmarks.quality.retake_report --comfyui FOLDER --clips 6
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from typing import Any

import torch

from benchmarks.command_line import comfyui_version
from benchmarks.quality import tiny_comfyui
from benchmarks.quality.stage_two_report import Task, drawn_clip, prepare
from benchmarks.quality.tiny_comfyui import Bench, decode, run_node
from swifti2v_core.geometry import pixel_frame_count
from swifti2v_core.stage_two.segments import Segment, plan_segments
from swifti2v_train.data.photos import read_photo
from swifti2v_train.evaluation.contact_sheets import save_sheet, strip
from swifti2v_train.evaluation.metrics import measure_clip, seam_energy

WIDTH = 384
DENOISE = {"concat": 1.0, "plain": 0.5}
UNTOUCHED, RETAKE, BLIND, PASTED = "untouched clip", "retake", "no frames after", "from another run"
Clips = dict[int, torch.Tensor]
Figures = dict[tuple[str, str], list[tuple[float, ...]]]


def sample(bench: Bench, kind: str, task: Task, seed: int, **options: Any) -> torch.Tensor:
    """Return the latents of the advanced sampler with 4 euler steps, without drift control."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model = bench.stage_two if kind == "concat" else bench.stage_one
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*[[[torch.zeros(1, 8, 4096), {}]]] * 2)
    sockets = {
        "noise": Noise_RandomNoise(seed),
        "guider": guider,
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": comfy.samplers.KSampler(model, 4, "cpu", "euler", "simple", denoise=DENOISE[kind]).sigmas,
    }
    inputs = {"z_ref": task.z_ref, "drift_control": 0.0, **sockets, **options}
    made: torch.Tensor = run_node(bench.pack, "SwiftI2V_SegmentSamplerAdvanced", **inputs)[0]["samples"]
    return made


def takes(bench: Bench, kind: str, task: Task, segment: Segment, clips: Clips) -> dict[str, torch.Tensor]:
    """Return the clip with a segment made again, by way; ``clips`` are the runs with seeds 1 and 2."""
    clip, number = {"samples": clips[1]}, segment.index
    made = sample(bench, kind, task, 2, latent=clip, retake=str(number))
    others = [frame for frame in range(made.shape[2]) if frame not in segment.noisy]
    if not torch.equal(made[:, :, others], clips[1][:, :, others]):
        raise RuntimeError(f"The retake of segment {number} changed frames of other segments.")
    blind = sample(bench, kind, task, 2, latent=clip, start_segment=number, end_segment=number + 1)
    result = {UNTOUCHED: clips[1], RETAKE: made}
    for name, source in ((BLIND, blind), (PASTED, clips[2])):
        result[name] = clips[1].clone()
        result[name][:, :, list(segment.noisy)] = source[:, :, list(segment.noisy)]
    return result


def measure(frames: torch.Tensor, latents: torch.Tensor, segment: Segment) -> tuple[float, ...]:
    """Return seam energy at the start and at the end of a segment, then the squared latent step there."""
    measured = measure_clip(frames)
    ends = segment.noisy[0], segment.noisy[-1] + 1
    step = latents.diff(dim=2).square().mean(dim=(0, 1, 3, 4))
    seams = (seam_energy(measured, starts=[pixel_frame_count(end)]) for end in ends)
    return (*seams, *(float(step[end - 1]) for end in ends))


def report_clip(bench: Bench, kind: str, task: Task, figures: Figures, options: argparse.Namespace) -> None:
    """Retake the inner segments of one clip; the sheet shows the last one."""
    clips = {seed: sample(bench, kind, task, seed) for seed in (1, 2)}
    decoded: dict[str, torch.Tensor] = {}
    for segment in plan_segments(clips[1].shape[2])[1:-1]:
        for way, latents in takes(bench, kind, task, segment, clips).items():
            if way != UNTOUCHED or UNTOUCHED not in decoded:
                decoded[way] = decode(bench, {"samples": latents})
            figures[kind, way].append(measure(decoded[way], latents, segment))
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        file = options.sheets / f"{kind}{len(figures[kind, RETAKE]):03}.jpg"
        save_sheet([strip(way, frames[-24:]) for way, frames in decoded.items()], file)


def main() -> None:
    """Measure and print the table."""
    parser = tiny_comfyui.parser(__doc__)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--frames", type=int, default=61)
    options = parser.parse_args()
    photos = [read_photo(path) for path in sorted(options.photos.glob("*.jpg"))]
    figures: Figures = defaultdict(list)
    with tiny_comfyui.comfyui(options.comfyui, options.models) as pack:
        bench = tiny_comfyui.load(pack, options.models)
        for clip in range(options.clips):
            task = prepare(bench, drawn_clip(photos, clip, WIDTH, options.frames), softened=True)
            for kind in DENOISE:
                report_clip(bench, kind, task, figures, options)
            print(f"clip {clip} is done", file=sys.stderr, flush=True)
    print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}, {WIDTH} wide\n")
    print("| weights | | segments | seam at start | seam at end | step at start | step at end |")
    print("|---" * 7 + "|")
    for (kind, way), rows in figures.items():
        cells = (f"{statistics.mean(row):.3f}" for row in zip(*rows, strict=True))
        print(f"| {kind} | {way} | {len(rows)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
