"""The ComfyUI base directory of a demo or test."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from devtools import paths

MODELS = {
    "tiny_vae48.safetensors": "vae",
    "tiny_stage1_motion.safetensors": "diffusion_models",
    "tiny_stage2_detail.safetensors": "diffusion_models",
}
DEMOS = {"camera": "swifti2v_demo", "model": "swifti2v_demo_model_motion"}
"""The shipped demo workflow for each kind of motion."""

MODEL_FOLDERS = ("vae", "diffusion_models", "text_encoders", "loras")


def prepare_workspace(workspace: Path) -> None:
    """Fill a ComfyUI base directory: the pack, the demo models and the demo photos."""
    for name in ("custom_nodes", "input", "output", *(f"models/{folder}" for folder in MODEL_FOLDERS)):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    link_pack(workspace / "custom_nodes" / "swifti2v")
    copies = {paths.ASSETS / name: workspace / "models" / folder / name for name, folder in MODELS.items()}
    copies |= {photo: workspace / "input" / photo.name for photo in (paths.ASSETS / "photos").glob("*.jpg")}
    for source, target in copies.items():
        if not target.is_file() or not filecmp.cmp(source, target):
            shutil.copy2(source, target)


def link_pack(target: Path) -> None:
    """Install the pack as a link to the repository, or as a copy where links are forbidden."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(paths.REPO, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        ignored = shutil.ignore_patterns(".*", "__pycache__", "benchmarks", "tests")
        shutil.copytree(paths.REPO, target, ignore=ignored)
