"""Conversion of Wan weights between their native names and diffusers'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

Value = TypeVar("Value")

PREFIXES = ("model.diffusion_model.", "diffusion_model.")

NATIVE_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    ("to_out.0", "o"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("proj_out", "head.head"),
)
"""Pairs of diffusers' name and native name; the inverse of diffusers' converter."""

NORMS = {"norm2": "norm3", "norm3": "norm2"}
"""diffusers numbers a block's norms in order of use."""


def native_key(key: str) -> str:
    """Return the native name of a parameter or LoRA factor from diffusers' name."""
    if key == "scale_shift_table":
        return "head.modulation"
    key = key.replace("scale_shift_table", "modulation")
    for diffusers_name, native in NATIVE_NAMES:
        key = re.sub(rf"(?<![^.]){re.escape(diffusers_name)}(?![^.])", native, key)
    return re.sub(r"(?<=\.)norm[23](?=\.)", lambda match: NORMS[match.group()], key)


def to_native(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under their native names."""
    return {native_key(key): value for key, value in state.items()}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return native weights under diffusers' names."""
    converted: dict[str, Tensor] = convert_wan_transformer_to_diffusers(dict(state))
    return converted


def native_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of native Wan weights by their names without prefix; reads the header only.

    Raises
    ------
    ValueError
        If the file holds no Wan transformer, or one with an image embedding or quantized weights.
    """
    with safe_open(path, framework="pt") as weights:
        slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (not a mapping)
        shapes = {key: tuple(part.get_shape()) for key, part in _without_prefix(slices).items()}
        kinds = {part.get_dtype() for part in slices.values()}
    if "patch_embedding.weight" not in shapes:
        raise ValueError(
            f"{path} holds no Wan model (patch_embedding is missing); name native Wan weights."
        )
    if any(key.startswith("img_emb") for key in shapes):
        raise ValueError(
            f"{path} has an image embedding, as Wan2.1-I2V has, but only Wan2.2's models can be trained; "
            "name Wan2.2-I2V-A14B or Wan2.2-TI2V-5B."
        )
    if not kinds <= {"F16", "BF16", "F32"}:
        raise ValueError(
            f"{path} is quantized ({', '.join(sorted(kinds))}), but training needs 16 or 32 bits; name the "
            "fp16 or bf16 file."
        )
    return shapes


def load_native(path: str | Path) -> dict[str, Tensor]:
    """Read native Wan weights by their names without prefix; raises ValueError as `native_shapes` does."""
    native_shapes(path)
    return _without_prefix(load_file(path))


def _without_prefix(state: Mapping[str, Value]) -> dict[str, Value]:
    for prefix in PREFIXES:
        if f"{prefix}patch_embedding.weight" in state:
            return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    return dict(state)


def widen_patch_embedding(state: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Return native weights widened to ``channels`` input channels.

    The new weights are zero, so the output does not change.
    """
    weight = state["patch_embedding.weight"]
    missing = weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])
    return {**state, "patch_embedding.weight": torch.cat((weight, missing), dim=1)}
