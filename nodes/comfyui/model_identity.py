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

NETWORK, SCHEDULE = "diffusion_model", "model_sampling"
"""Parts of a model: one identified by its weights, one by its content."""

ARITHMETIC = ("_full_precision_mm", "dequant_dtype", "patch_dtype")
"""Attributes of layers, ComfyUI's and ComfyUI-GGUF's, that change what the same weights compute."""


def model_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a network without patches, wherever ComfyUI keeps them at present.

    ComfyUI's own list of them, ``get_key_patches``, does not know quantized layers.
    """
    return _weights(model, NETWORK)


def _weights(model: Any, prefix: str) -> dict[str, torch.Tensor]:
    weights = {
        f"{name}.{key}": value
        for name, module in _modules(model).items()
        if name == prefix or name.startswith(f"{prefix}." if prefix else "")
        for key, value in {**module._parameters, **_saved_buffers(module)}.items()
        if value is not None
    }
    unpatched = {name: kept.weight for name, kept in model.backup.items() if name in weights}
    hooked = {name: kept[0] for name, kept in model.hook_backup.items() if name in weights}
    return {**weights, **unpatched, **hooked}


def _saved_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}


def _modules(model: Any) -> dict[str, torch.nn.Module]:
    """Return a model's modules by name as they are without patches, also while a clone's are applied."""
    replaced = model.object_patches_backup
    modules = {
        name: module
        for name, module in model.model.named_modules()
        if not any(f"{name}.".startswith(f"{key}.") for key in replaced)
    }
    for key, original in replaced.items():
        if isinstance(original, torch.nn.Module):
            modules.update(original.named_modules(prefix=key))
    return modules


def model_changes(model: Any) -> list[Any]:
    """Return what distinguishes two MODELs with equal weights: arithmetic, schedule, patches, options."""
    layers = {
        name: [type(module), *(getattr(module, attribute, None) for attribute in ARITHMETIC)]
        for name, module in _modules(model).items()
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
    """Return a function that replaces the parts of a MODEL by names; `model_weights` identifies them.

    Patches and options hold parts of the model they belong to, or models of their own.
    """
    names = {id(module): name for name, module in _modules(model).items() if name.split(".")[0] != SCHEDULE}

    def name_parts(value: Any) -> Any:
        if id(value) in names:
            return ("part of the model", names[id(value)])
        if hasattr(value, "_orig_mod"):
            return ("compiled", value._orig_mod)
        if isinstance(value, ModelPatcher):
            weights = None if value.model is model.model else _weights(value, "")
            return ("model", type(value.model), weights, _changes(value))
        return value

    return name_parts


def computing_environment(model: Any) -> list[Any]:
    """Return what affects the bits of a result beside the graph: versions, device, attention, --fast."""
    return [
        comfyui_version,
        torch.__version__,
        model_management.get_torch_device_name(model.load_device),
        optimized_attention,
        str(sorted(map(str, getattr(args, "fast", None) or ()))),
    ]
