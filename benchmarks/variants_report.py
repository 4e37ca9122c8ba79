"""What each choice does to a clip: Stage II against a known truth, noise reshifting in Stage I without one.

A camera move over each photo is rendered small (the motion of Stage I) and at full size (the truth).
Anchor Encode, the samplers and the decoder run in a real ComfyUI in this process, with the tiny concat
checkpoint; every variant starts from the same reference and the same noise, with drift control at 0
where its row says nothing else. The motion that the tiny Stage I invents has no truth, so its table has
no PSNR. Means over the photos; the figures are explained in ``swifti2v_core/metrics.py``::

    OMP_NUM_THREADS=1 python benchmarks/variants_report.py --comfyui FOLDER
    ... --frames 33 81:2 161:1 --photos life seeding --sheets FOLDER --append
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from command_line import RESULTS, comfyui_version
from PIL import Image
from repository import TINY
from tiny_host import Bench, comfyui, decode, encode, load, run_node, with_anchor

from swifti2v_core.images import resize
from swifti2v_core.stage_one.camera import CameraMove, camera_motion
from swifti2v_train.data.photos import read_photo
from swifti2v_train.evaluation.contact_sheets import save_sheet, strip
from swifti2v_train.evaluation.metrics import (
    ClipStatistics,
    laplacian_ratio,
    laplacian_slope,
    latent_means,
    lattice_peak,
    luma_pulse,
    measure_clip,
    motion_amount,
    seam_energy,
)

MOVE = CameraMove(pan_x=0.08, zoom=1.15, rotate=2.0, sway=0.01, seed=1)
"""A move of every kind at once, in the frame for the whole clip."""

SEED, STEPS = 1, 4
STAGE_ONE_FRAMES, STAGE_ONE_SIZE = 33, (640, 320)
"""Most frames of a clip of the tiny Stage I, and its size: what it was trained for."""

COLUMNS = {
    "PSNR": 2,
    "PSNR end": 2,
    "SSIM": 4,
    "Laplacian end": 3,
    "slope": 4,
    "sharpness": 3,
    "lattice end": 2,
    "pulse": 2,
    "seam": 2,
    "seconds": 1,
}
"""Decimals by column; sharpness is that of the last latent frame, 1 for that of the truth."""

STAGE_ONE_COLUMNS = {
    "Laplacian end": 3,
    "slope": 4,
    "pulse, lag 4": 2,
    "pulse, lag 12": 2,
    "motion": 2,
    "seconds": 1,
}


class Task(NamedTuple):
    """One photo's task: what is given, what is wanted.

    ``keyframed`` and ``keyframes`` are the outputs of Anchor Encode with the last frame of the truth as
    a keyframe; ``sharpness`` is that of the truth's last latent frame.
    """

    photo: torch.Tensor
    motion: torch.Tensor
    truth: torch.Tensor
    sharpness: float
    z_ref: dict[str, Any]
    keyframed: dict[str, Any]
    keyframes: dict[str, Any]


def tiny_photo(name: str) -> torch.Tensor:
    """Return one of the photos in this repository, ``[1, H, W, 3]`` in 0..1."""
    return read_photo(TINY / "photos" / f"{name}.jpg")


def prepare(bench: Bench, photo: torch.Tensor, width: int, frames: int, softened: bool = False) -> Task:
    """Render motion and truth of a photo and encode the references.

    ``softened`` sends the motion through the autoencoder first: as soft as a Stage I model leaves it.
    """
    height = width // 2
    motion = camera_motion(photo, width // 2, height // 2, frames, MOVE)
    if softened:
        motion = decode(bench, encode(bench, photo, motion, width // 2)[0])
    truth = camera_motion(photo, width, height, frames, MOVE)
    sharpness = float(latent_means(measure_clip(truth).sharpness)[-1])
    z_ref = encode(bench, photo, motion, width)[0]
    keyframed = encode(bench, photo, motion, width, keyframes=truth[-1:])
    return Task(photo, motion, truth, sharpness, z_ref, *keyframed)


# --- Variants -------------------------------------------------------------------------------------


def truth_encoded(bench: Bench, task: Task) -> dict[str, Any]:
    """Return the truth as a latent: the best that anything through this autoencoder can be."""
    return encode(bench, task.photo, task.truth, task.truth.shape[2])[0]


def enlarged(bench: Bench, task: Task) -> torch.Tensor:
    """Return the frames of the motion clip at full size, without an autoencoder."""
    return resize(task.motion, task.truth.shape[2], task.truth.shape[1])


def sampled(bench: Bench, task: Task, **options: Any) -> dict[str, Any]:
    """Return what the segment sampler makes of the reference, without drift control unless asked for."""
    inputs = {"model": bench.stage_two, "z_ref": task.z_ref, "seed": SEED, "steps": STEPS}
    return run_node(bench.pack, "SwiftI2V_SegmentSampler", **{**inputs, "drift_control": 0.0, **options})[0]


def keyframed(bench: Bench, task: Task) -> dict[str, Any]:
    """Return what the segment sampler makes with the last frame of the truth as a keyframe."""
    return sampled(bench, task, z_ref=task.keyframed, keyframes=task.keyframes)


def other_anchor(bench: Bench, task: Task, anchor: Callable[[Bench, Task], torch.Tensor]) -> dict[str, Any]:
    """Sample with windows that see something else than the photo.

    Only the sampler is deceived: the reference's other frames were encoded behind the photo, and the
    photo is put back before decoding, so that nothing but the windows differs.
    """
    photo = task.z_ref["samples"][:, :, :1]
    made = sampled(bench, task, z_ref=with_anchor(task.z_ref, anchor(bench, task)))
    return with_anchor(made, photo)


def no_anchor(bench: Bench, task: Task) -> torch.Tensor:
    """Return an anchor that holds nothing."""
    return torch.zeros_like(task.z_ref["samples"][:, :, :1])


def soft_anchor(bench: Bench, task: Task) -> torch.Tensor:
    """Return the first frame of the enlarged motion as an anchor: the scene without the photo's detail."""
    with torch.inference_mode():
        return bench.vae.encode(enlarged(bench, task)[:1])


def full_length(
    bench: Bench, task: Task, window_frames: int | None = None, denoise: float = 1.0
) -> dict[str, Any]:
    """Sample the whole clip at once with ComfyUI's KSampler, with temporal windows or full attention."""
    model, samples = bench.stage_two, task.z_ref["samples"]
    if window_frames is not None:
        options = {"model": model, "window_frames": window_frames}
        (model,) = run_node(bench.pack, "SwiftI2V_TemporalWindows", **options)
    prompt = [[torch.zeros(1, 8, 4096), {"concat_latent_image": samples}]]
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[:, :, 0] = 0
    latent = {"samples": samples, "noise_mask": mask}
    options = (SEED, STEPS, 1.0, "euler", "simple", prompt, prompt, latent, denoise)
    with torch.inference_mode():
        return bench.pack["KSampler"]().sample(model, *options)[0]


Variant = Callable[[Bench, Task], "dict[str, Any] | torch.Tensor"]
"""Makes a latent, or frames that need no decoding."""

YARDSTICKS: dict[str, Variant] = {
    "truth": lambda bench, task: task.truth,
    "truth, through the autoencoder": truth_encoded,
    "plain upscaling": enlarged,
    "z_ref, decoded": lambda bench, task: task.z_ref,
    "z_ref with keyframe, decoded": lambda bench, task: task.keyframed,
}
"""What no Stage II has touched."""

SAMPLED: dict[str, Variant] = {
    "bidirectional": sampled,
    "read-only": partial(sampled, context="read-only"),
    "N = 0": partial(sampled, neighbors=0),
    "anchor without detail": partial(other_anchor, anchor=soft_anchor),
    "no anchor": partial(other_anchor, anchor=no_anchor),
    "drift control 0.25": partial(sampled, drift_control=0.25),
    "drift control 0.5": partial(sampled, drift_control=0.5),
    "drift control 1": partial(sampled, drift_control=1.0),
    "reference strength 0.5": partial(sampled, reference_strength=0.5),
    "reference strength 1.5": partial(sampled, reference_strength=1.5),
    "keyframe at the end": keyframed,
    "full attention": full_length,
    "shifted windows": partial(full_length, window_frames=6),
    "full attention, denoise 0.5": partial(full_length, denoise=0.5),
    "shifted windows, denoise 0.5": partial(full_length, window_frames=6, denoise=0.5),
}
"""Ways of Stage II; the first differs from the defaults in drift control alone."""

VARIANTS = {**YARDSTICKS, **SAMPLED}

RESHIFTING: dict[str, dict[str, Any]] = {
    "reshifting off": {},
    "reshifting on": {"reshift_steps": 1},
    "reshifting on, noise matched": {"reshift_steps": 1, "reshift_match_snr": True},
}
"""Inputs of the motion sampler: one of four steps is the least there is."""


# --- Figures --------------------------------------------------------------------------------------


def figures(statistics: ClipStatistics, true_sharpness: float, seconds: float) -> list[float]:
    """Return the figures of a clip in the order of `COLUMNS`."""
    assert statistics.psnr is not None and statistics.ssim is not None
    return [
        float(statistics.psnr[1:].mean()),
        float(latent_means(statistics.psnr)[-1]),
        float(statistics.ssim[1:].mean()),
        float(laplacian_ratio(statistics)[-1]),
        laplacian_slope(statistics),
        float(latent_means(statistics.sharpness)[-1]) / true_sharpness,
        float(lattice_peak(statistics)[-1]),
        luma_pulse(statistics, 12),
        seam_energy(statistics),
        seconds,
    ]


def measure(bench: Bench, task: Task, variant: Variant) -> tuple[list[float], torch.Tensor]:
    """Make a variant, decode and measure it; the seconds are of the making alone."""
    begin = time.monotonic()
    made = variant(bench, task)
    seconds = time.monotonic() - begin
    if isinstance(made, dict):
        made = decode(bench, made)
    return figures(measure_clip(made, task.truth), task.sharpness, seconds), made


def stage_one_figures(statistics: ClipStatistics, seconds: float) -> list[float]:
    """Return the figures of a clip without a truth in the order of `STAGE_ONE_COLUMNS`."""
    return [
        float(laplacian_ratio(statistics)[-1]),
        laplacian_slope(statistics),
        luma_pulse(statistics, 4),
        luma_pulse(statistics, 12),
        motion_amount(statistics) * 255,
        seconds,
    ]


def measure_stage_one(
    bench: Bench, photo: torch.Tensor, size: tuple[int, int], frames: int, options: dict[str, Any]
) -> tuple[list[float], torch.Tensor]:
    """Let Stage I move a photo and measure the clip; the seconds include its decoding."""
    begin = time.monotonic()
    inputs = {"model_high_noise": bench.stage_one, "vae": bench.vae, "image": photo, "frames": frames}
    inputs |= {"width": size[0], "height": size[1], "seed": SEED, "steps": STEPS, **options}
    made = run_node(bench.pack, "SwiftI2V_MotionSampler", **inputs)[0].clamp(0, 1)
    return stage_one_figures(measure_clip(made), time.monotonic() - begin), made


Rows = dict[tuple[int, str], list[list[float]]]
"""Figures of every photo, by length and variant."""


def table(rows: Rows, columns: dict[str, int]) -> str:
    """Return the means over the photos as a Markdown table."""
    lines = ["| frames | | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for (frames, name), each in rows.items():
        cells = zip(np.mean(each, axis=0), columns.values(), strict=True)
        numbers = (f"{value:.{decimals}f}" for value, decimals in cells)
        lines.append(f"| {frames} | {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def best_and_worst(rows: Rows, frames: int) -> list[str]:
    """Return the variants of Stage II with the highest and the lowest mean PSNR; none if none was run."""
    decibel = {name: np.mean(rows[frames, name], axis=0)[0] for name in SAMPLED if (frames, name) in rows}
    return [pick(decibel, key=decibel.__getitem__) for pick in (max, min) if decibel]


# --- The command ----------------------------------------------------------------------------------


class Length(NamedTuple):
    """A length, and of how many of the photos; None for all."""

    frames: int
    photos: int | None

    @classmethod
    def read(cls, text: str) -> Length:
        """Read ``33`` or ``161:1``."""
        frames, _, photos = text.partition(":")
        return cls(int(frames), int(photos) if photos else None)


def run_length(
    bench: Bench,
    photos: list[str],
    width: int,
    frames: int,
    names: list[str],
    softened: bool = False,
    sheets: Path | None = None,
) -> Rows:
    """Return the figures of the named variants at one length, and save contact sheets."""
    rows: Rows = {}
    shown: dict[str, Image.Image] = {}  # of the first photo
    for name in photos:
        task = prepare(bench, tiny_photo(name), width, frames, softened)
        strips = {}
        for label in names:
            found, clip = measure(bench, task, VARIANTS[label])
            strips[label] = strip(f"{name}{', softened' * softened}, {label}", clip)
            rows.setdefault((frames, label), []).append(found)
            print(f"{frames} {name} {label}: {found}", file=sys.stderr, flush=True)
        if sheets:
            save_sheet(list(strips.values()), sheets / f"{name}_{frames}.png")
        shown = shown or strips
    if sheets:
        extremes = best_and_worst(rows, frames)
        picked = ["truth", "plain upscaling", "z_ref, decoded", "drift control 0.5", *extremes]
        save_sheet(
            [shown[label] for label in dict.fromkeys(picked) if label in shown],
            sheets / f"extremes_{frames}.jpg",
        )
    return rows


def run_stage_one(bench: Bench, photos: list[str], frames: int, sheets: Path | None) -> Rows:
    """Return the figures of Stage I, and save its contact sheet."""
    rows: Rows = {}
    strips = []
    for name in photos:
        for label, options in RESHIFTING.items():
            found, clip = measure_stage_one(bench, tiny_photo(name), STAGE_ONE_SIZE, frames, options)
            strips.append(strip(f"{name}, {label}", clip))
            rows.setdefault((frames, label), []).append(found)
            print(f"{frames} {name} {label}: {found}", file=sys.stderr, flush=True)
    if sheets:
        save_sheet(strips, sheets / f"stage_one_{frames}.png")
    return rows


def report(text: str, append: bool) -> None:
    """Print a table with its heading, and write it to the results if wished."""
    print(text, flush=True)
    if append:
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(f"\n{text}\n")


def heading(host: Path, photos: list[str], width: int, height: int) -> str:
    """Say when, with what and of what a table was made."""
    versions = f"ComfyUI {comfyui_version(host)}, torch {torch.__version__}"
    today = datetime.date.today().isoformat()
    return f"{today}, {versions}, {width}x{height}, means over {', '.join(photos)}:"


def main() -> None:
    """Read the command line, run every variant, print a table per length and one of Stage I."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--photos", nargs="+", default=["life", "picosdeeuropa", "seeding"])
    parser.add_argument(
        "--frames",
        nargs="+",
        type=Length.read,
        default=[Length(33, None), Length(81, 2), Length(161, 1)],
        metavar="FRAMES[:PHOTOS]",
        help="lengths, each of all or of the first PHOTOS photos; default 33 81:2 161:1",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME",
        help="default: all",
    )
    parser.add_argument("--width", type=int, default=384, help="of the result; half as high")
    parser.add_argument(
        "--softened",
        action="store_true",
        help="send the motion through the autoencoder first; no Stage I table",
    )
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="save contact sheets there")
    parser.add_argument("--append", action="store_true", help=f"write the tables to {RESULTS.name}, too")
    options = parser.parse_args()

    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
    with comfyui(options.comfyui) as pack:
        bench = load(pack)
        for frames, count in options.frames:
            photos = options.photos[:count]
            rows = run_length(
                bench,
                photos,
                options.width,
                frames,
                options.variants,
                options.softened,
                options.sheets,
            )
            title = "Softened motion, " * options.softened + heading(
                options.comfyui, photos, options.width, options.width // 2
            )
            report(f"{title}\n\n{table(rows, COLUMNS)}", options.append)
            if frames <= STAGE_ONE_FRAMES and not options.softened:
                rows = run_stage_one(bench, photos, frames, options.sheets)
                title = "Stage I, " + heading(options.comfyui, photos, *STAGE_ONE_SIZE)
                report(f"{title}\n\n{table(rows, STAGE_ONE_COLUMNS)}", options.append)


if __name__ == "__main__":
    main()
