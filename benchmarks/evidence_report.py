"""Evidence for or against Stage II: known motion over held-out photos, with spread over clips and seeds.

A clip is a scene of ``swifti2v_train/synthesize.py``: a photo, a camera move and sometimes a piece of
the next photo moving in front, all drawn from the clip's number. Rendered at full size it is the truth,
averaged down to half of it and sent through the autoencoder the motion, about as soft as a Stage I model
leaves it (``--motion clean`` leaves that out). Everything else is done by the nodes in a real ComfyUI in
this process. Every figure is appended to ``--raw`` as soon as it is known and not computed again by the
next call; the tables are made of all that the file holds::

    OMP_NUM_THREADS=1 python benchmarks/evidence_report.py --comfyui FOLDER --raw FILE.jsonl
    ... --photos FOLDER --clips 12 --frames 33 61 97 --seeds 1 2 --trained "read-only=FILE.safetensors"
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from command_line import comfyui_version
from repository import TINY
from tiny_host import Bench, comfyui, decode, encode, load, load_stage_two, run_node

from swifti2v_core.images import resize
from swifti2v_core.stage_two.segments import plan_segments
from swifti2v_train.data.dataset import EMPTY_TEXT_TOKENS
from swifti2v_train.data.photos import read_photo
from swifti2v_train.data.synthetic_scenes import average_down, draw_scene, render_scene
from swifti2v_train.evaluation.contact_sheets import save_sheet, strip
from swifti2v_train.evaluation.figures import (
    CEILING,
    PLAIN,
    REFERENCE,
    Row,
    comparison_table,
    figures,
    gap_figures,
    quality_table,
)
from swifti2v_train.networks.native_keys import load_native
from swifti2v_train.networks.sampling import generate_segments
from swifti2v_train.networks.window_transformer import WindowTransformer, network_from
from swifti2v_train.tasks.stage_two import without_anchor

CSG: dict[str, dict[str, Any]] = {f"CSG, {n} step{'s' * (n > 1)}": {"steps": n} for n in (1, 2, 4)}
"""Inputs of the segment sampler beside its defaults."""

NO_ANCHOR = "no anchor"

TRAINED: dict[str, dict[str, Any]] = {
    "read-only": {"context": "read-only"},
    NO_ANCHOR: {},
    "no neighbor": {"neighbors": 0},
    "no stage-transition": {},
    "no rollout": {},
}
"""Weights trained in another way, sampled as they were trained, in four steps."""


class Task(NamedTuple):
    """What is given and what is wanted: frames ``[F, H, W, 3]``, and both as latents."""

    motion: torch.Tensor
    truth: torch.Tensor
    z_ref: dict[str, Any]
    z_truth: dict[str, Any]


Way = Callable[[Bench, Task, int], dict[str, Any]]
"""A way of Stage II: makes a latent from a seed."""


# --- Making -----------------------------------------------------------------------------------------


def prepare(
    bench: Bench, photos: list[torch.Tensor], clip: int, width: int, frames: int, softened: bool
) -> Task:
    """Render the clip of a number and encode truth and reference; the height is half the width."""
    photo, other = (photos[(clip + ahead) % len(photos)] for ahead in (0, 1))
    scene = draw_scene(clip, 2.0, min(photo.shape[2] / width, photo.shape[1] / (width // 2)))
    truth = render_scene(photo, other, width, width // 2, frames, scene)
    motion = average_down(truth, width // 2, width // 4)
    if softened:
        motion = decode(bench, encode(bench, motion[:1], motion, width // 2)[0])
    z_ref, z_truth = (encode(bench, truth[:1], seen, width)[0] for seen in (motion, truth))
    return Task(motion, truth, z_ref, z_truth)


def sampled(bench: Bench, task: Task, seed: int, model: Any, **inputs: Any) -> dict[str, Any]:
    """Return what the segment sampler makes with a MODEL."""
    options = {"model": model, "z_ref": task.z_ref, "seed": seed, **inputs}
    return run_node(bench.pack, "SwiftI2V_SegmentSampler", **options)[0]


def without_photo(bench: Bench, task: Task, seed: int, network: WindowTransformer) -> dict[str, Any]:
    """Sample with windows that have no anchor, which no node can: as `sampled`, without drift control."""
    import comfy.sample

    wan, z_ref = bench.stage_two.model, task.z_ref["samples"]
    reference, noise = wan.process_latent_in(z_ref), comfy.sample.prepare_noise(z_ref, seed)
    text = torch.zeros(1, EMPTY_TEXT_TOKENS, network.config.text_dim)
    segments = [without_anchor(segment) for segment in plan_segments(z_ref.shape[2])]
    made = generate_segments(network, reference, reference, text, noise, segments)
    return {"samples": wan.process_latent_out(made)}


def gap_of(bench: Bench, task: Task, made: dict[str, Any]) -> Row:
    """Return how much of the reference's error is gone in a latent, in the space the network sees."""
    latents, reference, truth = (
        bench.stage_two.model.process_latent_in(latent["samples"])
        for latent in (made, task.z_ref, task.z_truth)
    )
    return gap_figures(latents, reference, truth, plan_segments(truth.shape[2]))


def run_clip(
    bench: Bench, task: Task, ways: dict[str, Way], seeds: list[int]
) -> Iterator[tuple[str, int | None, Row, torch.Tensor]]:
    """Yield variant, seed, figures and frames of everything that is made of a task."""
    size = task.truth.shape[2], task.truth.shape[1]
    yardsticks = {CEILING: task.z_truth, PLAIN: resize(task.motion, *size), REFERENCE: task.z_ref}
    for name, made in yardsticks.items():
        clip = decode(bench, made) if isinstance(made, dict) else made
        gap = gap_of(bench, task, made) if isinstance(made, dict) else {}
        yield name, None, {**figures(clip, task.truth), **gap}, clip
    for name, way in ways.items():
        for seed in seeds:
            begin = time.monotonic()
            latent = way(bench, task, seed)
            seconds = time.monotonic() - begin
            clip = decode(bench, latent)
            yield name, seed, {**figures(clip, task.truth, seconds), **gap_of(bench, task, latent)}, clip


# --- The command ------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """Return what earlier calls have measured, none if there were none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained_file(text: str) -> tuple[str, Path]:
    """Read ``NAME=FILE``."""
    name, _, file = text.partition("=")
    if name not in TRAINED or not Path(file).is_file():
        raise argparse.ArgumentTypeError(
            f'"{text}" is not NAME=FILE with a file that exists and a name of {", ".join(TRAINED)}'
        )
    return name, Path(file).resolve()


def ways_of(bench: Bench, trained: list[tuple[str, Path]]) -> dict[str, Way]:
    """Return the ways of Stage II: CSG with each number of steps, then the weights that were named."""
    ways: dict[str, Way] = {
        name: partial(sampled, model=bench.stage_two, **inputs) for name, inputs in CSG.items()
    }
    for name, file in trained:
        if name == NO_ANCHOR:
            way = partial(without_photo, network=network_from(load_native(file)))
        else:
            way = partial(sampled, model=load_stage_two(bench.pack, file), **TRAINED[name])
        ways[f"trained: {name}"] = way
    return ways


def measure(bench: Bench, options: argparse.Namespace) -> None:
    """Measure what the raw file does not hold yet, a whole clip at a time."""
    photos = [read_photo(path) for path in sorted(options.photos.glob("*.jpg"))]
    ways = ways_of(bench, options.trained)
    for frames, clip in product(options.frames, range(options.clips)):
        earlier = [row for row in read_rows(options.raw) if (row["frames"], row["clip"]) == (frames, clip)]
        seen = {row["variant"] for row in earlier}
        missing = {name: way for name, way in ways.items() if name not in seen}
        if not missing:
            continue
        task = prepare(bench, photos, clip, options.width, frames, options.motion == "softened")
        rows, strips = [], [strip("truth", task.truth)]
        for name, seed, row, made in run_clip(bench, task, missing, options.seeds):
            if name not in seen:
                rows.append({"frames": frames, "clip": clip, "variant": name, "seed": seed, **row})
            if seed in (None, options.seeds[0]):
                strips.append(strip(f"{name}, {row['PSNR']:.2f} dB", made))
        with options.raw.open("a", encoding="utf-8") as raw:
            raw.writelines(json.dumps(row) + "\n" for row in rows)
        if options.sheets:
            save_sheet(strips, options.sheets / f"clip{clip:02}_{frames}.jpg")
        print(f"{frames} frames, clip {clip}: {len(rows)} rows", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("--comfyui", type=Path, required=True, metavar="FOLDER")
    made.add_argument("--raw", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--photos", type=Path, default=TINY / "photos", metavar="FOLDER")
    made.add_argument("--models", type=Path, default=TINY, metavar="FOLDER", help="of the tiny models")
    made.add_argument("--clips", type=int, default=12, help="each with a scene of its own")
    made.add_argument("--frames", nargs="+", type=int, default=[33, 61, 97])
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="of Stage II's noise")
    made.add_argument("--width", type=int, default=384, help="of the result; half as high")
    made.add_argument("--motion", choices=["softened", "clean"], default="softened")
    made.add_argument(
        "--trained", nargs="+", type=trained_file, default=[], metavar="NAME=FILE", help=", ".join(TRAINED)
    )
    made.add_argument("--sheets", type=Path, metavar="FOLDER", help="save contact sheets there")
    return made


def main() -> None:
    """Read the command line, measure, print the tables."""
    options = parser().parse_args()
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
    with comfyui(options.comfyui, options.models) as pack:
        measure(load(pack, options.models), options)
    rows = read_rows(options.raw)
    print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}, {options.width} wide\n")
    print(f"{quality_table(rows)}\n\n{comparison_table(rows)}")


if __name__ == "__main__":
    main()
