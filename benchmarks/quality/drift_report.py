"""What drift control does to clips that have not drifted.

A clip is a camera move over a photo, sent through the tiny autoencoder; its reference is the same clip,
reduced and enlarged 4x. The clip is a perfect result, so whatever drift control changes is an error::

    OMP_NUM_THREADS=1 python -m benchmarks.quality.drift_report --comfyui FOLDER --photos FOLDER

*moved* is the distance from the clip, as a share of that between clip and reference. 99 of 100 channels
and frames differ from the first segment by less than *contrast* and *brightness*.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.command_line import comfyui_version
from benchmarks.quality.tiny_comfyui import comfyui, parser
from swifti2v_core.stage_one.camera import CameraMove, camera_motion
from swifti2v_core.stage_two.drift_control import low_pass_statistics, match_statistics, measure_offset
from swifti2v_train.data.photos import read_photo

WIDTH, HEIGHT, FRAMES, SCALE = 320, 160, 33, 4
MOVES = {
    "zoom to 1.25": CameraMove(pan_x=0.1, zoom=1.25),
    "pan by 0.35": CameraMove(pan_x=0.35),
    "zoom to 1.6": CameraMove(zoom=1.6),
}
FIRST, LATER = slice(1, 4), slice(4, None)
"""Latent frames of the first segment and of the others."""


def softened(clip: Tensor) -> Tensor:
    """Return frames ``[F, H, W, 3]`` reduced and enlarged again."""
    small = F.interpolate(clip.movedim(-1, 1), size=(HEIGHT // SCALE, WIDTH // SCALE), mode="area")
    large = F.interpolate(small, size=(HEIGHT, WIDTH), mode="bicubic", antialias=True)
    return large.clamp(0, 1).movedim(1, -1)


def measure(sharp: Tensor, soft: Tensor) -> tuple[float, float, float, float]:
    """Return how far 0.25 and 1 move a clip, and its 99th percentiles of contrast and brightness."""
    first = measure_offset(sharp[:, :, FIRST], soft[:, :, FIRST])
    clip, reference = sharp[:, :, LATER], soft[:, :, LATER]
    moved = (
        float(
            (match_statistics(clip, reference, first, strength) - clip).norm() / (reference - clip).norm()
        )
        for strength in (0.25, 1.0)
    )
    usual, offset = first.mean(), measure_offset(clip, reference)
    _, spread = low_pass_statistics(reference)
    contrast = (offset.contrast - usual.contrast).abs().quantile(0.99)
    brightness = ((offset.brightness - usual.brightness) / spread).abs().quantile(0.99)
    return (*moved, float(contrast), float(brightness))


def main() -> None:
    """Measure every move over every photo and print a row each."""
    options = parser(__doc__).parse_args()
    with comfyui(options.comfyui, options.models), torch.inference_mode():
        import nodes

        vae = nodes.NODE_CLASS_MAPPINGS["VAELoader"]().load_vae("tiny_vae48.safetensors")[0]
        print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}\n")
        print("| photo | move | moved at 0.25 | moved at 1 | contrast | brightness |")
        print("|---|---|---|---|---|---|")
        for photo in sorted(options.photos.glob("*.jpg")):
            picture = read_photo(photo)
            for name, move in MOVES.items():
                clip = camera_motion(picture, WIDTH, HEIGHT, FRAMES, move, "crop")
                latents = (vae.encode(each).float() for each in (clip, softened(clip)))
                quarter, whole, contrast, brightness = measure(*latents)
                cells = f"{quarter:.4f} | {whole:.4f} | {contrast:.3f} | {brightness:.3f}"
                print(f"| {photo.stem} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
