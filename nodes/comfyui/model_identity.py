"""What distinguishes two runs with equal inputs: the patched model, the device, the versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.ldm.modules.attention import optimized_attention

# Called through the module, because other packs replace it; a missing one is reported at start.
from comfy.model_management import get_torch_device_name  # noqa: F401
from comfy.model_patcher import ModelPatcher
from comfyui_version import __version__ as comfyui_version

from .model_weights import model_modules, weights_digest

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
    "patch_on_device",  # of ComfyUI-GGUF
)
"""Attributes of a MODEL in which nodes store their changes."""

WHILE_SAMPLING = {"model_patcher", "inner_model", "conds", "loaded_models"}
"""Attributes of a GUIDER that are no settings: the MODEL, and leftovers of a failed sampling."""

SCHEDULE = "model_sampling"
"""The part of a model that is identified by its content."""

ARITHMETIC = ("_full_precision_mm", "dequant_dtype", "patch_dtype")
"""Attributes of layers, ComfyUI's and ComfyUI-GGUF's, that change what the same weights compute."""


def model_changes(model: Any) -> list[Any]:
    """Return what distinguishes two MODELs with equal weights: arithmetic, schedule, patches, options."""
    layers = {
        name: [type(module), *(getattr(module, attribute, None) for attribute in ARITHMETIC)]
        for name, module in model_modules(model).items()
    }
    precision = (model.model_dtype(), model.get_model_object("manual_cast_dtype"))
    shape = model.model.model_config.unet_config
    return [layers, shape, model.get_model_object(SCHEDULE), precision, _changes(model)]


def _changes(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name, None) for name in CHANGES}


def guider_settings(guider: Any) -> list[Any]:
    """Return a GUIDER's kind, conditions and settings, without its MODEL."""
    settings = {name: value for name, value in vars(guider).items() if name not in WHILE_SAMPLING}
    return [type(guider), settings]


def without_weights(model: Any) -> Callable[[Any], Any]:
    """Return a function that replaces the parts of a MODEL by names; `weights_digest` identifies them.

    Patches and options hold parts of the model they belong to, or models of their own.
    """
    names = {
        id(module): name for name, module in model_modules(model).items() if name.split(".")[0] != SCHEDULE
    }

    def name_parts(value: Any) -> Any:
        if id(value) in names:
            return ("part of the model", names[id(value)])
        if hasattr(value, "_orig_mod"):
            return ("compiled", value._orig_mod)
        if isinstance(value, ModelPatcher):
            weights = None if value.model is model.model else weights_digest(value, "")
            return ("model", type(value.model), weights, _changes(value))
        return value

    return name_parts


def computing_environment(model: Any) -> list[Any]:
    """Return what affects the bits of a result beside the graph: versions, device, attention, --fast.

    Nothing else of the machine counts: neither its name, its folders, its number of threads, nor which of
    several equal devices computes.
    """
    return [
        comfyui_version,
        torch.__version__,
        _device_name(model.load_device),
        optimized_attention,
        str(sorted(map(str, getattr(args, "fast", None) or ()))),
    ]


def _device_name(device: torch.device) -> str:
    """Return the name of a device without its number and allocator; for a CPU, its vector instructions."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    name: str = model_management.get_torch_device_name(device)  # "cuda:0 NVIDIA H200 : cudaMallocAsync"
    return name.removeprefix(str(device)).partition(" : ")[0].strip()
