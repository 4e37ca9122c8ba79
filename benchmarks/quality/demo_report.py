"""Figures and a contact sheet of the demo's video.

The truth of a camera move is known: the same move rendered at full size. The table compares four clips with
it: the video, plain upscaling of the motion clip, the decoded reference of Stage II, and the autoencoder's
round trip of the truth, the ceiling for any latent. Figures are of the center of the picture (half its
width and height) and of the frames after frame 0. The contact sheet shows frames of the video above plain
upscaling and the truth.

``python3 dev.py demo`` runs this; by itself::

    python -m benchmarks.quality.demo_report --video V.mp4 --photo P.jpg --motion camera \\
        --comfyui FOLDER --sheet S.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.command_line import boot
from benchmarks.quality.tiny_comfyui import TINY
from swifti2v_core.images import resize
from swifti2v_core.stage_one.camera import CameraMove, camera_motion
from swifti2v_train.data.photos import read_photo
from swifti2v_train.data.videos import read_frames
from swifti2v_train.evaluation.contact_sheets import save_sheet, strip
from swifti2v_train.evaluation.metrics import fidelity, sharpness

SHEET_COLUMNS = 6
THUMBNAIL_WIDTH = 320


def read_tags(path: Path) -> dict[str, str]:
    """Return the metadata tags of a video file."""
    with av.open(str(path)) as container:
        return dict(container.metadata)


def node_inputs(tags: dict[str, str], node: str) -> dict[str, object]:
    """Return the inputs of a node in the graph stored in the video."""
    return next(n["inputs"] for n in json.loads(tags["prompt"]).values() if n["class_type"] == node)


def move_of(inputs: dict[str, object]) -> CameraMove:
    """Return the camera move of the inputs of SwiftI2V_CameraMotion."""
    return CameraMove(**{name: inputs[name] for name in CameraMove.__dataclass_fields__})


def round_trips(comfyui: Path, clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """Encode and decode clips with the demo's autoencoder in ComfyUI."""
    boot(comfyui, cpu=True)
    import comfy.sd
    import comfy.utils

    weights = comfy.utils.load_torch_file(str(TINY / "tiny_vae48.safetensors"))
    vae = comfy.sd.VAE(sd=weights)
    with torch.inference_mode():
        return [vae.decode(vae.encode(clip))[0].clamp(0, 1) for clip in clips]


def detail(frames: torch.Tensor) -> float:
    """Return the sharpness of the frames after frame 0, in 8-bit levels."""
    return float(np.mean([sharpness(frame) for frame in frames[1:]])) * 255


def center(frames: torch.Tensor) -> torch.Tensor:
    """Return the center of the frames: half their width and height, rounded down to a multiple of 32."""
    height, width = (size // 64 * 32 for size in frames.shape[1:3])
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def figures(frames: torch.Tensor, truth: torch.Tensor) -> tuple[float, float, float]:
    """Return PSNR in dB and SSIM of the frames after frame 0, and sharpness in 8-bit levels."""
    similarity = np.mean([fidelity(a, b) for a, b in zip(frames[1:], truth[1:], strict=True)], axis=0)
    return float(similarity[0]), float(similarity[1]), detail(frames)


def print_table(rows: dict[str, tuple[float, float, float]]) -> None:
    """Print one line per row."""
    print(f"{'against the known truth':<36}{'PSNR':>9}{'SSIM':>9}{'sharpness':>11}")
    for name, (decibel, similarity, sharp) in rows.items():
        likeness = f"{decibel:>6.2f} dB{similarity:>9.3f}" if np.isfinite(decibel) else f"{'-':>9}{'-':>9}"
        print(f"{name:<36}{likeness}{sharp:>11.2f}")


def main() -> None:
    """Print the figures and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("video", "photo", "comfyui", "sheet"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--motion", choices=["camera", "model"], required=True)
    options = parser.parse_args()

    video, tags = torch.stack([*read_frames(options.video)]), read_tags(options.video)
    count, height, width = video.shape[:3]
    rows = {"video": video}
    if options.motion == "camera":
        photo, inputs = read_photo(options.photo), node_inputs(tags, "SwiftI2V_CameraMotion")
        move, fit = move_of(inputs), inputs["fit"]
        truth = camera_motion(photo, width, height, count, move, fit)
        motion = camera_motion(photo, inputs["width"], inputs["height"], count, move, fit)
        upscaled = resize(motion, width, height)
        rows |= {"plain upscaling": upscaled, "truth": truth}
        wanted, enlarged = center(truth), center(upscaled)
        ceiling, reference = round_trips(options.comfyui, [wanted, enlarged])
        print_table(
            {
                "this video": figures(center(video), wanted),
                "reference, through the autoencoder": figures(reference, wanted),
                "ceiling: truth, through the same": figures(ceiling, wanted),
                "plain upscaling, no autoencoder": figures(enlarged, wanted),
                "the truth itself": (float("inf"), 1.0, detail(wanted)),
            }
        )
    else:
        print(f"sharpness {detail(video):.2f}; no truth is known for a motion that a model invents")
    strips = [strip(name, clip, SHEET_COLUMNS, THUMBNAIL_WIDTH) for name, clip in rows.items()]
    save_sheet(strips, options.sheet)


if __name__ == "__main__":
    main()
