"""The tiny models in a real ComfyUI in this process, for the quality reports."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.command_line import ROOT, add_comfyui, boot

TINY = ROOT / "tests" / "assets" / "tiny"
STAGE_TWO = "tiny_stage2_detail.safetensors"


class Bench(NamedTuple):
    """ComfyUI's nodes by id, and the tiny models."""

    pack: dict[str, Any]
    stage_one: Any
    stage_two: Any
    vae: Any


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the reports share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_comfyui(made)
    made.add_argument("--models", type=Path, default=TINY, metavar="FOLDER", help="of the tiny models")
    made.add_argument(
        "--photos", type=Path, default=TINY / "photos", metavar="FOLDER", help="of .jpg files"
    )
    made.add_argument("--sheets", type=Path, metavar="FOLDER", help="save contact sheets there")
    return made


@contextlib.contextmanager
def comfyui(folder: Path, models: Path = TINY) -> Iterator[dict[str, Any]]:
    """Boot ComfyUI on the CPU with this pack and a folder of models; yield all nodes by id."""
    boot(folder, cpu=True)
    import folder_paths

    import nodes

    with tempfile.TemporaryDirectory() as base:
        pack = Path(base, "swifti2v")
        pack.symlink_to(ROOT, target_is_directory=True)
        for kind in ("diffusion_models", "vae"):
            folder_paths.add_model_folder_path(kind, str(models), is_default=True)
        if not asyncio.run(nodes.load_custom_node(str(pack))):
            raise RuntimeError(f"ComfyUI in {folder} could not load the pack; see its message above.")
        yield nodes.NODE_CLASS_MAPPINGS


def run_node(pack: dict[str, Any], node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Run a node of the pack with the defaults of its widgets; return its outputs."""
    node = pack[node_id]
    accepted = inspect.signature(node.execute).parameters
    defaults = {
        widget.id: widget.default
        for widget in node.GET_SCHEMA().inputs
        if getattr(widget, "default", None) is not None and widget.id in accepted
    }
    with torch.inference_mode():
        outputs: tuple[Any, ...] = (
            node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**{**defaults, **inputs}).args
        )
    return outputs


def load(pack: dict[str, Any], models: Path = TINY) -> Bench:
    """Load the tiny models, as a user does, from the folder that `comfyui` was given."""
    names = {"high_noise_model": "tiny_stage1_motion.safetensors", "low_noise_model": "none"}
    loras = {"high_noise_lora": "none", "low_noise_lora": "none"}
    (one, *_) = run_node(pack, "SwiftI2V_LoadStageI", **names, **loras, weight_dtype="default")
    two = load_stage_two(pack, models / STAGE_TWO)
    return Bench(pack, one, two, pack["VAELoader"]().load_vae("tiny_vae48.safetensors")[0])


def load_stage_two(pack: dict[str, Any], weights: Path) -> Any:
    """Return the MODEL of a file of Stage II weights."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(weights.parent))
    options = {"lora": "none", "weight_dtype": "default"}
    return run_node(pack, "SwiftI2V_LoadStageII", model_name=weights.name, **options)[0]


def encode(bench: Bench, photo: torch.Tensor, motion: torch.Tensor, width: int, **options: Any) -> Any:
    """Return the outputs of Anchor Encode, half as high as ``width``, for a photo and a motion clip."""
    size = {"width": width, "height": width // 2, "frames": len(motion)}
    return run_node(
        bench.pack, "SwiftI2V_AnchorEncode", vae=bench.vae, image=photo, motion=motion, **size, **options
    )


def decode(bench: Bench, latent: dict[str, Any]) -> torch.Tensor:
    """Return the frames of a latent, in 0..1."""
    frames: torch.Tensor = run_node(bench.pack, "SwiftI2V_TiledVAEDecode", samples=latent, vae=bench.vae)[0]
    return frames.clamp(0, 1)


def with_anchor(latent: dict[str, Any], anchor: torch.Tensor) -> dict[str, Any]:
    """Return a latent whose latent frame 0 is ``anchor``, ``[1, 48, 1, h, w]``."""
    return {"samples": torch.cat((anchor, latent["samples"][:, :, 1:]), dim=2)}
