"""The tiny models in a real ComfyUI, in this process, for the reports."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from command_line import boot
from repository import ROOT, TINY

STAGE_TWO = "tiny_stage2_detail.safetensors"


class Bench(NamedTuple):
    """ComfyUI's nodes by id, and the tiny models."""

    pack: dict[str, Any]
    stage_one: Any
    stage_two: Any
    vae: Any


@contextlib.contextmanager
def comfyui(folder: Path, models: Path = TINY) -> Iterator[dict[str, Any]]:
    """Boot a ComfyUI on the CPU with this pack and a folder of models; yield all nodes by id."""
    boot(folder, cpu=True)
    import folder_paths

    import nodes

    with tempfile.TemporaryDirectory() as base:
        pack = Path(base, "swifti2v")
        pack.symlink_to(ROOT, target_is_directory=True)
        for kind in ("diffusion_models", "vae"):
            folder_paths.add_model_folder_path(kind, str(models), is_default=True)
        if not asyncio.run(nodes.load_custom_node(str(pack))):
            raise RuntimeError(f"ComfyUI in {folder} could not load the pack; its message is above.")
        yield nodes.NODE_CLASS_MAPPINGS


def run_node(pack: dict[str, Any], node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Run a node of the pack with its widgets' defaults; return its outputs."""
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
    """Load the tiny models of the folder that `comfyui` was given, as a user does."""
    names = {"high_noise_model": "tiny_stage1_motion.safetensors", "low_noise_model": "none"}
    loras = {"high_noise_lora": "none", "low_noise_lora": "none"}
    (one, *_) = run_node(pack, "SwiftI2V_LoadStageI", **names, **loras, weight_dtype="default")
    two = load_stage_two(pack, models / STAGE_TWO)
    return Bench(pack, one, two, pack["VAELoader"]().load_vae("tiny_vae48.safetensors")[0])


def load_stage_two(pack: dict[str, Any], weights: Path) -> Any:
    """Return the MODEL of Stage II weights."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(weights.parent))
    options = {"lora": "none", "weight_dtype": "default"}
    return run_node(pack, "SwiftI2V_LoadStageII", model_name=weights.name, **options)[0]


def encode(bench: Bench, photo: torch.Tensor, motion: torch.Tensor, width: int, **options: Any) -> Any:
    """Return what Anchor Encode makes of a photo and a clip, twice as wide as high."""
    size = {"width": width, "height": width // 2, "frames": len(motion)}
    return run_node(
        bench.pack, "SwiftI2V_AnchorEncode", vae=bench.vae, image=photo, motion=motion, **size, **options
    )


def decode(bench: Bench, latent: dict[str, Any]) -> torch.Tensor:
    """Return the frames of a latent, in 0..1."""
    frames: torch.Tensor = run_node(bench.pack, "SwiftI2V_TiledVAEDecode", samples=latent, vae=bench.vae)[0]
    return frames.clamp(0, 1)


def with_anchor(latent: dict[str, Any], anchor: torch.Tensor) -> dict[str, Any]:
    """Return a latent with another latent frame 0."""
    return {"samples": torch.cat((anchor, latent["samples"][:, :, 1:]), dim=2)}
