"""The weights of a MODEL without patches, and their digest, for which each weight is read once.

A digest is kept for every model object, which clones share, and for every file: a model that ComfyUI
loads again from an unchanged file is not read again. The first and last elements of each weight are
compared before a digest is used again, so weights that another node overwrote in place are noticed; a
change that spares both ends of every weight is not, nor is one under dynamic VRAM, where weights are maps
of their file and even their ends may have to come from the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...swifti2v_core.resume.fingerprint import fingerprint, fingerprint_tensors, tensor_ends
from .progress import check_interrupted

NETWORK = "diffusion_model"
"""The part of a model that is identified by its weights."""

_of_models: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[str, str]]] = WeakKeyDictionary()
"""Digests of the ends and of all of the weights, by model object and part."""

_of_files: dict[tuple[Any, ...], str] = {}
"""Digests of all of the weights, by file, part and digest of the ends."""


def weights_digest(model: Any, part: str = NETWORK) -> str:
    """Return the digest of a model's weights without patches; reads them the first time only.

    Parameters
    ----------
    model
        The MODEL, or another of ComfyUI's patchers.
    part
        Name of the module whose weights count; "" for all.
    """
    known = _of_models.setdefault(model.model, {})
    if part in known and model.is_dynamic():
        return known[part][1]
    weights = model_weights(model, part)
    ends = fingerprint({name: tensor_ends(weight) for name, weight in weights.items()})
    if known.get(part, ("", ""))[0] != ends:
        known[part] = ends, _digest_by_file(model, part, ends, weights)
    return known[part][1]


def _digest_by_file(model: Any, part: str, ends: str, weights: Mapping[str, Tensor]) -> str:
    file = _file_version(model)
    if file is None:
        return fingerprint_tensors(weights, check_interrupted)
    # With the ends, because the file may have been replaced after the model was loaded.
    key = (*file, part, ends)
    if key not in _of_files:
        _of_files[key] = fingerprint_tensors(weights, check_interrupted)
    return _of_files[key]


def _file_version(model: Any) -> tuple[str, int, int] | None:
    """Return path, size and time of the file that a model was loaded from; None if that is not known.

    ComfyUI keeps the loading function and its arguments, the first of which is the path.
    """
    loading: Any = getattr(model, "cached_patcher_init", None)
    try:
        path = Path(loading[1][0])
        status = path.stat()
    except (TypeError, LookupError, OSError, ValueError):
        return None
    return str(path), status.st_size, status.st_mtime_ns


def model_weights(model: Any, part: str = NETWORK) -> dict[str, Tensor]:
    """Return the weights of a part without patches, wherever ComfyUI keeps them at present.

    ComfyUI's own list of them, ``get_key_patches``, does not know quantized layers.
    """
    weights = {
        f"{name}.{key}": value
        for name, module in model_modules(model).items()
        if name == part or name.startswith(f"{part}." if part else "")
        for key, value in {**module._parameters, **_saved_buffers(module)}.items()
        if value is not None
    }
    unpatched = {name: kept.weight for name, kept in model.backup.items() if name in weights}
    hooked = {name: kept[0] for name, kept in model.hook_backup.items() if name in weights}
    return {**weights, **unpatched, **hooked}


def _saved_buffers(module: torch.nn.Module) -> dict[str, Tensor | None]:
    return {k: v for k, v in module._buffers.items() if k not in module._non_persistent_buffers_set}


def model_modules(model: Any) -> dict[str, torch.nn.Module]:
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
