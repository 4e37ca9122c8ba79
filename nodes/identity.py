"""What tells two runs apart whose inputs look alike: the model with its changes, and what computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .internals import internal

CHANGES = (
    "patches",
    "weight_wrapper_patches",
    "object_patches",
    "hook_patches",
    "injections",
    "additional_models",
    "model_options",
    "wrappers",
    "callbacks",
)
"""Attributes of a MODEL that hold what nodes have changed in it."""

WHILE_SAMPLING = {"model_patcher", "inner_model", "conds", "loaded_models"}
"""Attributes of a GUIDER that are no settings: the MODEL, and what a sampling that failed leaves behind."""


def model_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a network without patches, wherever ComfyUI keeps them at present."""
    entries = model.get_key_patches("diffusion_model.")
    return {name.replace("._orig_mod", ""): entry[0][0] for name, entry in entries.items()}


def model_changes(model: Any) -> list[Any]:
    """Return what tells apart two MODELs with the same weights: patches, options, precision, schedule."""
    network = model.get_model_object("diffusion_model")
    schedule = model.get_model_object("model_sampling")
    precision = (model.model_dtype(), model.model.manual_cast_dtype)
    changes = {name: getattr(model, name, None) for name in CHANGES}
    return [type(network), model.model.model_config.unet_config, schedule, precision, changes]


def guider_settings(guider: Any) -> list[Any]:
    """Return a GUIDER's kind, conditions and settings, without its MODEL."""
    settings = {name: value for name, value in vars(guider).items() if name not in WHILE_SAMPLING}
    return [type(guider), settings]


def without_weights(model: Any) -> Callable[[Any], Any]:
    """Return a function that names the parts of a MODEL, which are told apart by `model_weights`.

    Patches and options hold parts of the model they belong to, or models of their own.
    """
    replaced = {id(value) for value in model.object_patches.values()}  # inside the model while it is loaded
    parts = {id(module): name for name, module in model.model.named_modules() if id(module) not in replaced}

    def name_parts(value: Any) -> Any:
        if id(value) in parts:
            return ("part of the model", parts[id(value)])
        if hasattr(value, "_orig_mod"):
            return ("compiled", value._orig_mod)
        if isinstance(value, internal("comfy.model_patcher.ModelPatcher")):
            weights = None if value.model is model.model else model_weights(value)
            return ("MODEL", weights, model_changes(value))
        return value

    return name_parts


def computing(model: Any) -> list[str]:
    """Return what computes: versions, device, and the attention that ComfyUI was started with."""
    return [
        internal("comfyui_version.__version__"),
        torch.__version__,
        internal("comfy.model_management.get_torch_device_name")(model.load_device),
        internal("comfy.ldm.modules.attention.optimized_attention").__name__,
        str(sorted(map(str, getattr(internal("comfy.cli_args.args"), "fast", None) or ()))),
    ]
