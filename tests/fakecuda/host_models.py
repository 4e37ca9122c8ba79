"""ComfyUI's own models and autoencoders at their real sizes, with weights that are fake CUDA tensors."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from fake_machine import CPU, CUDA

WIDTHS = {
    "TI2V-5B": {"dim": 3072, "out_dim": 48, "num_heads": 24, "ffn_dim": 14336, "num_layers": 30},
    "A14B": {"dim": 5120, "out_dim": 16, "num_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}

SHIFT = 5.0
TEXT_TOKENS, TEXT_WIDTH = 512, 4096


def wan_model(kind: str, channels: int, blocks: int = 2, dtype: torch.dtype = torch.float16) -> Any:
    """Return a MODEL on the GPU with shift 5.

    Parameters
    ----------
    kind
        A key of `WIDTHS`.
    channels
        Input channels: 48 plain, 96 concat, 36 for A14B.
    blocks
        Transformer blocks; memory beside the weights hardly depends on them.
    """
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher
    from swifti2v.nodes.comfyui.models import with_shift

    config = {
        "image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "freq_dim": 256,
        "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
        "in_dim": channels, "text_dim": TEXT_WIDTH, **WIDTHS[kind], "num_layers": blocks,
    }  # fmt: skip
    known = comfy.supported_models
    family = (known.WAN22_T2V if kind == "TI2V-5B" else known.WAN21_T2V)(config)
    family.set_inference_dtype(dtype, None)
    model = family.get_model({}, "", device=CUDA)
    return with_shift(ModelPatcher(model, load_device=CUDA, offload_device=CPU, size=1), SHIFT)


def wan_vae(channels: int = 48, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a VAE on the GPU in the size of the released weights: 48 channels (Wan2.2) or 16 (Wan2.1)."""
    import comfy.sd
    from comfy.ldm.wan import vae, vae2_2

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake weights cannot be cast once they are made
    try:
        with CUDA:
            if channels == 48:
                network = vae2_2.WanVAE(
                    dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True]
                )
            else:
                network = vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
            return comfy.sd.VAE(sd=network.state_dict(), device=CUDA, dtype=dtype)
    finally:
        torch.set_default_dtype(default)


def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Run a node by id with its widgets' defaults, as ComfyUI's executor does."""
    from swifti2v.nodes import NODES

    node = next(node for node in NODES if node.GET_SCHEMA().node_id == node_id)
    accepted = inspect.signature(node.execute).parameters
    defaults = {
        widget.id: widget.default
        for widget in node.GET_SCHEMA().inputs
        if getattr(widget, "default", None) is not None and widget.id in accepted
    }
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    return clone.execute(**{**defaults, **inputs}).args


def text() -> list[list[Any]]:
    """Return a CONDITIONING as long as Wan's text encoder makes it."""
    return [[torch.zeros(1, TEXT_TOKENS, TEXT_WIDTH), {}]]
