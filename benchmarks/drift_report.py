"""What drift control and reference strength do to a clip, against a known truth.

A camera move over each photo is rendered small (the motion of Stage I) and at full size (the truth).
Anchor Encode, the segment sampler and the decoder run in a real ComfyUI in this process, with the tiny
concat checkpoint; every choice starts from the same reference and the same noise. One table, means over
the photos; the figures are explained in ``swifti2v_core/metrics.py``::

    OMP_NUM_THREADS=1 python -I benchmarks/drift_report.py --comfyui FOLDER
    ... --frames 33 81 --photos life seeding --sheet FOLDER --append
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import inspect
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from swifti2v_core.camera import CameraMove, camera_motion  # noqa: E402
from swifti2v_core.metrics import (  # noqa: E402
    ClipStatistics,
    laplacian_ratio,
    laplacian_slope,
    latent_means,
    lattice_peak,
    luma_pulse,
    measure_clip,
    seam_energy,
)

TINY = ROOT / "tests" / "assets" / "tiny"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
MOVE = CameraMove(pan_x=0.08, zoom=1.15, rotate=2.0, sway=0.01, seed=1)
"""A move of every kind at once, in the frame for the whole clip."""

CHOICES: dict[str, dict[str, float]] = {
    "drift control 0": {"drift_control": 0.0},
    "drift control 0.5": {"drift_control": 0.5},
    "drift control 1": {"drift_control": 1.0},
    "reference strength 0.5": {"drift_control": 0.0, "reference_strength": 0.5},
    "reference strength 1.5": {"drift_control": 0.0, "reference_strength": 1.5},
}
"""Inputs of the segment sampler; where nothing is said, the reference strength is 1."""

COLUMNS = (
    "PSNR",
    "PSNR end",
    "SSIM",
    "Laplacian end",
    "slope",
    "lattice end",
    "pulse",
    "seam",
    "seconds",
)
DECIMALS = (2, 2, 4, 3, 4, 2, 2, 2, 1)


class Clip(NamedTuple):
    """One photo's task: what is given, what is wanted."""

    reference: dict[str, Any]
    truth: torch.Tensor


# --- The host -------------------------------------------------------------------------------------


@contextlib.contextmanager
def comfyui(folder: Path) -> Iterator[dict[str, Any]]:
    """Boot a ComfyUI on the CPU with this pack and the tiny models; yield the pack's nodes by id."""
    sys.path.insert(0, str(folder))
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--disable-all-custom-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # reads sys.argv, once

    sys.argv = arguments
    import folder_paths

    import nodes

    with tempfile.TemporaryDirectory() as base:
        pack = Path(base, "swifti2v")
        pack.symlink_to(ROOT, target_is_directory=True)
        for kind in ("diffusion_models", "vae"):
            folder_paths.add_model_folder_path(kind, str(TINY), is_default=True)
        if not asyncio.run(nodes.load_custom_node(str(pack))):
            raise RuntimeError(f"ComfyUI in {folder} could not load the pack; its message is above.")
        yield nodes.NODE_CLASS_MAPPINGS


def run_node(pack: dict[str, Any], node_id: str, **inputs: Any) -> Any:
    """Run a node with its widgets' defaults; return its first output."""
    node = pack[node_id]
    accepted = inspect.signature(node.execute).parameters
    defaults = {
        widget.id: widget.default
        for widget in node.GET_SCHEMA().inputs
        if getattr(widget, "default", None) is not None and widget.id in accepted
    }
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**{**defaults, **inputs}).args[0]


def read_photo(name: str) -> torch.Tensor:
    """Return a photo ``[1, H, W, 3]`` in 0..1."""
    with Image.open(TINY / "photos" / f"{name}.jpg") as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def prepare(pack: dict[str, Any], vae: Any, photo: torch.Tensor, width: int, frames: int) -> Clip:
    """Render motion and truth of a photo and encode the reference."""
    height = width // 2
    motion = camera_motion(photo, width // 2, height // 2, frames, MOVE)
    reference = run_node(
        pack,
        "SwiftI2V_AnchorEncode",
        vae=vae,
        image=photo,
        motion=motion,
        width=width,
        height=height,
        frames=frames,
    )
    return Clip(reference, camera_motion(photo, width, height, frames, MOVE))


# --- Figures --------------------------------------------------------------------------------------


def figures(statistics: ClipStatistics, seconds: float) -> list[float]:
    """Return the figures of a clip in the order of `COLUMNS`."""
    assert statistics.psnr is not None and statistics.ssim is not None
    return [
        float(statistics.psnr[1:].mean()),
        float(latent_means(statistics.psnr)[-1]),
        float(statistics.ssim[1:].mean()),
        float(laplacian_ratio(statistics)[-1]),
        laplacian_slope(statistics),
        float(lattice_peak(statistics)[-1]),
        luma_pulse(statistics, 12),
        seam_energy(statistics),
        seconds,
    ]


def measure(
    pack: dict[str, Any], model: Any, vae: Any, clip: Clip, choice: dict[str, float] | None
) -> tuple[list[float], torch.Tensor]:
    """Sample (None: take the reference itself), decode and measure."""
    begin = time.monotonic()
    latent = clip.reference
    if choice is not None:
        latent = run_node(
            pack, "SwiftI2V_SegmentSampler", model=model, z_ref=clip.reference, seed=1, **choice
        )
    seconds = time.monotonic() - begin
    frames = run_node(pack, "SwiftI2V_TiledVAEDecode", samples=latent, vae=vae).clamp(0, 1)
    return figures(measure_clip(frames, clip.truth), seconds), frames


def table(rows: dict[tuple[int, str], list[list[float]]]) -> str:
    """Return the means over the photos as a Markdown table."""
    lines = [
        "| frames | | " + " | ".join(COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for (frames, name), each in rows.items():
        means = np.mean(each, axis=0)
        cells = (f"{value:.{decimals}f}" for value, decimals in zip(means, DECIMALS, strict=True))
        lines.append(f"| {frames} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def contact_sheet(clips: dict[str, torch.Tensor], path: Path) -> None:
    """Save five evenly spaced frames of every clip, one clip per row."""
    count, height, width, _ = next(iter(clips.values())).shape
    picked = [round(i * (count - 1) / 4) for i in range(5)]
    sheet = Image.new("RGB", (5 * width, len(clips) * (height + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, frames) in enumerate(clips.items()):
        top = row * (height + 14)
        pen.text((4, top), f"{name}: frames {', '.join(map(str, picked))}", fill="black")
        for column, frame in enumerate(picked):
            pixels = (frames[frame] * 255).round().to(torch.uint8).numpy()
            sheet.paste(Image.fromarray(pixels), (column * width, top + 14))
    sheet.save(path)


def main() -> None:
    """Read the command line, run every choice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--photos", nargs="+", default=["life", "picosdeeuropa", "seeding"])
    parser.add_argument("--frames", nargs="+", type=int, default=[33, 81])
    parser.add_argument("--width", type=int, default=384, help="of the result; half as high")
    parser.add_argument("--sheet", type=Path, metavar="FOLDER", help="save contact sheets there")
    parser.add_argument("--append", action="store_true", help=f"write the table to {RESULTS.name}, too")
    options = parser.parse_args()

    rows: dict[tuple[int, str], list[list[float]]] = {}
    with comfyui(options.comfyui) as pack:
        model = run_node(
            pack,
            "SwiftI2V_LoadStageII",
            model_name="tiny_stage2_detail.safetensors",
            lora="none",
            weight_dtype="default",
        )
        vae = pack["VAELoader"]().load_vae("tiny_vae48.safetensors")[0]
        for frames in options.frames:
            for name in options.photos:
                clip = prepare(pack, vae, read_photo(name), options.width, frames)
                shown = {"truth": clip.truth}
                for label, choice in {**CHOICES, "z_ref, decoded": None}.items():
                    found, shown[label] = measure(pack, model, vae, clip, choice)
                    rows.setdefault((frames, label), []).append(found)
                    print(f"{frames} {name} {label}: {found}", file=sys.stderr, flush=True)
                if options.sheet:
                    contact_sheet(shown, options.sheet / f"{name}_{frames}.png")
    made = table(rows)
    print(made)
    if options.append:
        today = datetime.date.today().isoformat()
        size = f"{options.width}x{options.width // 2}"
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(f"\n{today}, {size}, means over {', '.join(options.photos)}:\n\n{made}\n")


if __name__ == "__main__":
    main()
