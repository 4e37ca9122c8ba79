"""ComfyUI's folders: model files and what their headers tell, and where results go."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...swifti2v_core.text import shortened
from . import internals, memory
from .internals import internal, works

WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The same choices as ComfyUI's own diffusion model loader."""

FLOATS_OF_FILES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Number formats of a first layer, as safetensors files name them; it is never an integer."""

RESHAPE = "diffusion_model.patch_embedding.reshape_weight"
"""What a LoRA says that shape is to be."""


def model_files(folder: str) -> list[str]:
    """Return the model files of a ComfyUI folder, extra model paths included."""
    if not works(internals.LOADERS):
        return []
    return internal("folder_paths.get_filename_list")(folder)


def input_channels_of_file(name: str) -> int | None:
    """Read the input channels of a Wan checkpoint from its header, without loading it.

    Returns
    -------
    int or None
        None when the file is no safetensors file.

    Raises
    ------
    ValueError
        If the file is damaged or holds no Wan patch embedding.
    """
    tensors = _header("diffusion_models", name)
    if tensors is None:
        return None
    for key, (dtype, shape) in tensors.items():
        if key.endswith("patch_embedding.weight") and dtype in FLOATS_OF_FILES and len(shape) == 5:
            return shape[1]
    raise ValueError(
        f"{name} holds no Wan model (it has no patch_embedding of 5 dimensions); load Wan2.2-I2V-A14B or "
        "Wan2.2-TI2V-5B for Stage I, SwiftI2V weights or Wan2.2-TI2V-5B for Stage II."
    )


def check_lora_file(name: str) -> None:
    """Raise ValueError if a LoRA file is damaged, as far as its header shows."""
    _header("loras", name)


def _header(folder: str, name: str) -> dict[str, tuple[str, list[int]]] | None:
    """Return type and shape of a file's tensors by name, None when it is no safetensors file."""
    path = _path(folder, name)
    if not path.endswith((".safetensors", ".sft")):
        return None
    try:
        with safe_open(path, framework="pt") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (no mapping)
            return {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = shortened(str(error))
        raise ValueError(f"{name} is no complete safetensors file ({reason}); download it again.") from None


@contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Say in one sentence that a file is not what it should be, whatever ComfyUI stumbles over."""
    try:
        yield
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        reason = shortened(f"{type(error).__name__}: {error}")
        raise ValueError(
            f"{name} cannot be loaded ({reason}); download it again or choose another file."
        ) from error


def input_channels_of_lora(name: str) -> int | None:
    """Return the input channels to which a LoRA widens a model, or None if it leaves them alone."""
    header = _header("loras", name)
    if header is None or RESHAPE not in header:
        return None
    if header[RESHAPE] != ("I64", [5]):
        raise ValueError(f"{name} is no adapter for SwiftI2V (its {RESHAPE} is no shape); choose another.")
    with safe_open(_path("loras", name), framework="pt") as weights:
        return int(weights.get_tensor(RESHAPE)[1])


def load_model(name: str, weight_dtype: str, channels: int | None = None) -> Any:
    """Load a diffusion model as ComfyUI's own loader does.

    Parameters
    ----------
    name
        File in ComfyUI's folder.
    weight_dtype
        A key of `WEIGHT_DTYPES`.
    channels
        Input channels that the model is to have, the new ones without effect; None: as in the file.
        ComfyUI would widen the weight when it applies the LoRA, but not one that it keeps in RAM.
    """
    path, options = _path("diffusion_models", name), dict(WEIGHT_DTYPES[weight_dtype])
    with _said_of(name):
        if channels is None:
            return internal("comfy.sd.load_diffusion_model")(path, model_options=options)
        state, metadata = internal("comfy.utils.load_torch_file")(path, return_metadata=True)
        _widen(state, channels)
        load = internal("comfy.sd.load_diffusion_model_state_dict")
        return load(state, model_options=options, metadata=metadata)


def _widen(state: dict[str, torch.Tensor], channels: int) -> None:
    key = next(key for key in state if key.endswith("patch_embedding.weight"))
    weight = state[key]
    state[key] = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    state[key][:, : weight.shape[1]] = weight


def _path(folder: str, name: str) -> str:
    return internal("folder_paths.get_full_path_or_raise")(folder, name)


def apply_lora(model: Any, name: str, strength: float) -> Any:
    """Return a clone of ``model`` with a LoRA file applied, as ``LoraLoaderModelOnly`` does."""
    path = _path("loras", name)
    with _said_of(name):
        lora = internal("comfy.utils.load_torch_file")(path, safe_load=True)
        patched, _ = internal("comfy.sd.load_lora_for_models")(model, None, lora, strength, 0)
    return patched


def output_folder() -> str:
    """Return the absolute path of the folder that ComfyUI saves to."""
    return os.path.abspath(internal("folder_paths.get_output_directory")())


def save_path(prefix: str, extension: str, width: int, height: int) -> tuple[str, str, str]:
    """Return (full path, file name, subfolder) of a new file in ComfyUI's output folder.

    ComfyUI refuses prefixes that leave the output folder.
    """
    new_path = internal("folder_paths.get_save_image_path")
    folder, name, counter, subfolder, _ = new_path(prefix, output_folder(), width, height)
    file = f"{name}_{counter:05}_.{extension}"
    return os.path.join(folder, file), file, subfolder


def workflow_metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """Return the tags that let ComfyUI restore the graph from a file; empty if the user said no."""
    if not works(internals.METADATA) or internal("comfy.cli_args.args.disable_metadata"):
        return {}
    tags = {name: json.dumps(value) for name, value in (extra or {}).items()}
    return tags if prompt is None else {"prompt": json.dumps(prompt), **tags}


def checkpoint_folder() -> Path:
    """Return the folder of all checkpoints: ComfyUI empties its temporary folder at every start."""
    return Path(output_folder()) / "swifti2v_checkpoints"
