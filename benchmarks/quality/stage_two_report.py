"""Stage II against a known truth, variant by variant, with the spread over clips and seeds.

A clip is a camera move over a photo, rendered large as the truth and small as the motion. With
``--camera drawn`` the number of the clip draws a scene, see `swifti2v_train.data.synthetic_scenes`: a move,
and sometimes a piece of the next photo that moves in front. ``--camera fixed`` renders one move over every
photo. ``--motion softened`` sends the motion through the autoencoder first, which leaves it about as soft
as a Stage I model does. The nodes in a real ComfyUI in this process do everything else.

Every figure is appended to ``--raw`` when it is known and not measured again by a later run; the tables
show all rows of that file, so keep one file per camera, motion and width::

    OMP_NUM_THREADS=1 python -m benchmarks.quality.stage_two_report --comfyui FOLDER --raw FILE.jsonl
    ... --camera fixed --motion clean --frames 33 --seeds 1 --variants all
    ... --photos FOLDER --clips 12 --frames 33 61 97 --trained "read-only=FILE.safetensors"
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.command_line import comfyui_version
from benchmarks.quality import tiny_comfyui
from benchmarks.quality.tiny_comfyui import Bench, decode, encode, run_node, with_anchor
from swifti2v_core.images import resize
from swifti2v_core.stage_one.camera import CameraMove, camera_motion
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

MOVE = CameraMove(pan_x=0.08, zoom=1.15, rotate=2.0, sway=0.01, seed=1)
"""The fixed move: every kind at once, never leaving the photo."""


class Clip(NamedTuple):
    """A rendered clip: ``[F, H, W, 3]`` small and large, and the photo for the start of each."""

    motion: torch.Tensor
    truth: torch.Tensor
    motion_photo: torch.Tensor
    photo: torch.Tensor


class Task(NamedTuple):
    """Input and wanted output: photo, motion and truth ``[F, H, W, 3]``, reference and truth as latents."""

    photo: torch.Tensor
    motion: torch.Tensor
    truth: torch.Tensor
    z_ref: dict[str, Any]
    z_truth: dict[str, Any]


Variant = Callable[[Bench, Task, Any], "dict[str, Any] | torch.Tensor"]
"""Makes a latent, or frames that need no decode, from a seed."""


# --- Clips ------------------------------------------------------------------------------------------


def drawn_clip(photos: list[torch.Tensor], clip: int, width: int, frames: int) -> Clip:
    """Render the scene drawn from the number of a clip."""
    photo, other = (photos[(clip + ahead) % len(photos)] for ahead in (0, 1))
    scene = draw_scene(clip, 2.0, min(photo.shape[2] / width, photo.shape[1] / (width // 2)))
    truth = render_scene(photo, other, width, width // 2, frames, scene)
    motion = average_down(truth, width // 2, width // 4)
    return Clip(motion, truth, motion[:1], truth[:1])


def fixed_clip(photos: list[torch.Tensor], clip: int, width: int, frames: int) -> Clip:
    """Render the fixed move over the photo with the number of the clip."""
    photo = photos[clip]
    motion, truth = (camera_motion(photo, side, side // 2, frames, MOVE) for side in (width // 2, width))
    return Clip(motion, truth, photo, photo)


CAMERAS = {"drawn": drawn_clip, "fixed": fixed_clip}


def prepare(bench: Bench, clip: Clip, softened: bool) -> Task:
    """Encode the reference and the truth of a clip."""
    motion, truth, motion_photo, photo = clip
    if softened:
        motion = decode(bench, encode(bench, motion_photo, motion, motion.shape[2])[0])
    z_ref, z_truth = (encode(bench, photo, seen, truth.shape[2])[0] for seen in (motion, truth))
    return Task(photo, motion, truth, z_ref, z_truth)


# --- Variants ---------------------------------------------------------------------------------------


def upscaled(bench: Bench, task: Task, seed: int | None) -> torch.Tensor:
    """Return the frames of the motion at full size, without an autoencoder."""
    return resize(task.motion, task.truth.shape[2], task.truth.shape[1])


def sampled(bench: Bench, task: Task, seed: int, model: Any = None, **inputs: Any) -> dict[str, Any]:
    """Return the latent of the segment sampler, with its defaults beside ``inputs``."""
    options = {"model": model or bench.stage_two, "z_ref": task.z_ref, "seed": seed, **inputs}
    return run_node(bench.pack, "SwiftI2V_SegmentSampler", **options)[0]


def keyframed(bench: Bench, task: Task) -> tuple[dict[str, Any], Any]:
    """Return reference and keyframes of Anchor Encode with the last true frame as a keyframe."""
    z_ref, keyframes, *_ = encode(
        bench, task.photo, task.motion, task.truth.shape[2], keyframes=task.truth[-1:]
    )
    return z_ref, keyframes


def with_keyframe(bench: Bench, task: Task, seed: int) -> dict[str, Any]:
    """Sample with the last true frame as a keyframe."""
    z_ref, keyframes = keyframed(bench, task)
    return sampled(bench, task, seed, z_ref=z_ref, keyframes=keyframes, drift_control=0.0)


def with_other_anchor(
    bench: Bench, task: Task, seed: int, anchor: Callable[[Bench, Task], torch.Tensor]
) -> dict[str, Any]:
    """Sample with another anchor in the windows; the decode starts from the photo as usual."""
    z_ref = with_anchor(task.z_ref, anchor(bench, task))
    made = sampled(bench, task, seed, z_ref=z_ref, drift_control=0.0)
    return with_anchor(made, task.z_ref["samples"][:, :, :1])


def zero_anchor(bench: Bench, task: Task) -> torch.Tensor:
    """Return an anchor of zeros."""
    return torch.zeros_like(task.z_ref["samples"][:, :, :1])


def soft_anchor(bench: Bench, task: Task) -> torch.Tensor:
    """Return the first frame of the upscaled motion as an anchor: the scene without the photo's detail."""
    with torch.inference_mode():
        return bench.vae.encode(upscaled(bench, task, None)[:1])


def full_length(
    bench: Bench, task: Task, seed: int, window_frames: int | None = None, denoise: float = 1.0
) -> dict[str, Any]:
    """Sample the whole clip at once with ComfyUI's KSampler, in temporal windows or with full attention."""
    model, samples = bench.stage_two, task.z_ref["samples"]
    if window_frames is not None:
        options = {"model": model, "window_frames": window_frames}
        (model,) = run_node(bench.pack, "SwiftI2V_TemporalWindows", **options)
    prompt = [[torch.zeros(1, EMPTY_TEXT_TOKENS, 4096), {"concat_latent_image": samples}]]
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[:, :, 0] = 0
    latent = {"samples": samples, "noise_mask": mask}
    with torch.inference_mode():
        return bench.pack["KSampler"]().sample(
            model, seed, 4, 1.0, "euler", "simple", prompt, prompt, latent, denoise
        )[0]


def without_photo(bench: Bench, task: Task, seed: int, network: WindowTransformer) -> dict[str, Any]:
    """Sample with windows that have no anchor, which no node offers, and without drift control."""
    import comfy.sample

    wan, z_ref = bench.stage_two.model, task.z_ref["samples"]
    reference, noise = wan.process_latent_in(z_ref), comfy.sample.prepare_noise(z_ref, seed)
    text = torch.zeros(1, EMPTY_TEXT_TOKENS, network.config.text_dim)
    segments = [without_anchor(segment) for segment in plan_segments(z_ref.shape[2])]
    made = generate_segments(network, reference, reference, text, noise, segments)
    return {"samples": wan.process_latent_out(made)}


YARDSTICKS: dict[str, Variant] = {
    CEILING: lambda bench, task, _: task.z_truth,
    PLAIN: upscaled,
    REFERENCE: lambda bench, task, _: task.z_ref,
}
"""Made without Stage II, measured for every clip."""

CSG: dict[str, Variant] = {f"CSG, {n} step{'s' * (n > 1)}": partial(sampled, steps=n) for n in (1, 2, 4)}
"""The segment sampler with its defaults."""

CHOICES: dict[str, Variant] = {
    "truth": lambda bench, task, _: task.truth,
    "z_ref with keyframe, decoded": lambda bench, task, _: keyframed(bench, task)[0],
    "bidirectional": partial(sampled, drift_control=0.0),
    "read-only": partial(sampled, drift_control=0.0, context="read-only"),
    "N = 0": partial(sampled, drift_control=0.0, neighbors=0),
    "anchor without detail": partial(with_other_anchor, anchor=soft_anchor),
    "no anchor": partial(with_other_anchor, anchor=zero_anchor),
    "drift control 0.25": partial(sampled, drift_control=0.25),
    "drift control 0.5": partial(sampled, drift_control=0.5),
    "drift control 1": partial(sampled, drift_control=1.0),
    "reference strength 0.5": partial(sampled, drift_control=0.0, reference_strength=0.5),
    "reference strength 1.5": partial(sampled, drift_control=0.0, reference_strength=1.5),
    "keyframe at the end": with_keyframe,
    "full attention": full_length,
    "shifted windows": partial(full_length, window_frames=6),
    "full attention, denoise 0.5": partial(full_length, denoise=0.5),
    "shifted windows, denoise 0.5": partial(full_length, window_frames=6, denoise=0.5),
}
"""One choice each against "bidirectional", without drift control unless named; all in 4 steps."""

VARIANTS = {**CSG, **CHOICES}

NO_ANCHOR = "no anchor"

TRAINED: dict[str, dict[str, Any]] = {
    "read-only": {"context": "read-only"},
    NO_ANCHOR: {},
    "no neighbor": {"neighbors": 0},
    "no stage-transition": {},
    "no rollout": {},
}
"""Ways to train the weights, with the inputs that sample them the same way."""


def trained_variant(bench: Bench, name: str, file: Path) -> Variant:
    """Return the variant that samples weights as they were trained."""
    if name == NO_ANCHOR:
        return partial(without_photo, network=network_from(load_native(file)))
    return partial(sampled, model=tiny_comfyui.load_stage_two(bench.pack, file), **TRAINED[name])


# --- Figures ----------------------------------------------------------------------------------------


def gap_of(bench: Bench, task: Task, made: dict[str, Any]) -> Row:
    """Return the share of the reference's error that a latent closes, in the space of the network."""
    latents, reference, truth = (
        bench.stage_two.model.process_latent_in(latent["samples"])
        for latent in (made, task.z_ref, task.z_truth)
    )
    return gap_figures(latents, reference, truth, plan_segments(truth.shape[2]))


def measure(bench: Bench, task: Task, variant: Variant, seed: int | None) -> tuple[Row, torch.Tensor]:
    """Return figures and frames of a variant; seconds exclude the decode and need a seed."""
    begin = time.monotonic()
    made = variant(bench, task, seed)
    seconds = math.nan if seed is None else time.monotonic() - begin
    if isinstance(made, torch.Tensor):
        return figures(made, task.truth, seconds), made
    clip = decode(bench, made)
    return {**figures(clip, task.truth, seconds), **gap_of(bench, task, made)}, clip


def read_rows(path: Path) -> list[Row]:
    """Return the rows of earlier runs."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(rows: list[Row]) -> str:
    """Return both tables in Markdown."""
    compared = [row for row in rows if row["variant"] in YARDSTICKS or "gap of segments" in row]
    return f"{quality_table(rows)}\n\n{comparison_table(compared)}"


# --- The command ------------------------------------------------------------------------------------


def measure_clip(
    bench: Bench, task: Task, variants: dict[str, Variant], options: argparse.Namespace, place: Row
) -> None:
    """Append the rows of the variants of one clip to the raw file and save its contact sheet."""
    rows, strips = [], [strip("truth", task.truth)]
    for name, variant in variants.items():
        seeds = [None] if name in YARDSTICKS else options.seeds
        for seed in seeds:
            row, made = measure(bench, task, variant, seed)
            rows.append({**place, "variant": name, "seed": seed, **row})
            if seed == seeds[0]:
                strips.append(strip(f"{name}, {row['PSNR']:.2f} dB", made))
    with options.raw.open("a", encoding="utf-8") as raw:
        raw.writelines(json.dumps(row) + "\n" for row in rows)
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        save_sheet(strips, options.sheets / f"clip{place['clip']:02}_{place['frames']}.jpg")
    print(f"{place['frames']} frames, clip {place['clip']}: {len(rows)} rows", file=sys.stderr, flush=True)


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Measure what the raw file lacks, one clip at a time."""
    photos = [read_photo(path) for path in sorted(options.photos.glob("*.jpg"))]
    names = list(VARIANTS) if "all" in options.variants else options.variants
    variants = {**YARDSTICKS, **{name: VARIANTS[name] for name in names}}
    for name, file in options.trained:
        variants[f"trained: {name}"] = trained_variant(bench, name, file)
    clips = min(options.clips, len(photos)) if options.camera == "fixed" else options.clips
    for frames, clip in product(options.frames, range(clips)):
        place = {"frames": frames, "clip": clip}
        known = {row["variant"] for row in read_rows(options.raw) if place.items() <= row.items()}
        missing = {name: variant for name, variant in variants.items() if name not in known}
        if missing:
            rendered = CAMERAS[options.camera](photos, clip, options.width, frames)
            task = prepare(bench, rendered, options.motion == "softened")
            measure_clip(bench, task, missing, options, place)


def trained_file(text: str) -> tuple[str, Path]:
    """Parse ``NAME=FILE``."""
    name, _, file = text.partition("=")
    if name not in TRAINED or not Path(file).is_file():
        raise argparse.ArgumentTypeError(
            f'"{text}" is not NAME=FILE with a file that exists and a name of {", ".join(TRAINED)}'
        )
    return name, Path(file).resolve()


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = tiny_comfyui.parser(__doc__)
    made.add_argument("--raw", type=Path, required=True, metavar="FILE.jsonl")
    made.add_argument("--camera", choices=list(CAMERAS), default="drawn")
    made.add_argument("--motion", choices=["softened", "clean"], default="softened")
    made.add_argument("--clips", type=int, default=12, help="number of clips; fixed: at most one per photo")
    made.add_argument("--frames", nargs="+", type=int, default=[33, 61, 97])
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2], help="of Stage II's noise")
    made.add_argument("--width", type=int, default=384, help="of the result; half as high")
    made.add_argument(
        "--variants",
        nargs="+",
        choices=[*VARIANTS, "all"],
        default=list(CSG),
        metavar="NAME",
        help=f"all, or some of: {'; '.join(VARIANTS)}; default: {'; '.join(CSG)}",
    )
    made.add_argument(
        "--trained", nargs="+", type=trained_file, default=[], metavar="NAME=FILE", help=", ".join(TRAINED)
    )
    return made


def main() -> None:
    """Measure and print the tables."""
    options = parser().parse_args()
    with tiny_comfyui.comfyui(options.comfyui, options.models) as pack:
        run(tiny_comfyui.load(pack, options.models), options)
    print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}, {options.width} wide\n")
    print(tables(read_rows(options.raw)))


if __name__ == "__main__":
    main()
