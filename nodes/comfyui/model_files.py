"""Model files: their names, their headers, and how they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.sd import load_diffusion_model, load_diffusion_model_state_dict, load_lora_for_models
from comfy.utils import load_torch_file
from folder_paths import get_filename_list, get_full_path_or_raise
from safetensors import SafetensorError, safe_open

from ...swifti2v_core.text import shortened
from . import memory
from .lora_fit import fitting_weights

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The same choices as ComfyUI's own diffusion model loader."""

FLOATS_OF_FILES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
"""Number formats of a first layer, as safetensors files name them; it is never an integer."""

RESHAPE = "diffusion_model.patch_embedding.reshape_weight"
"""Key of a LoRA that holds the shape it widens the patch embedding to."""


def model_files(folder: str) -> list[str]:
    """Return the model files of a ComfyUI folder, extra model paths included."""
    return get_filename_list(folder)


def model_path(folder: str, name: str) -> str:
    """Return the full path of a model file."""
    return get_full_path_or_raise(folder, name)


def input_channels_of_file(name: str) -> int | None:
    """Read the input channels of a Wan model from its file's header, without loading it.

    Returns
    -------
    int or None
        None when the file is no safetensors file.

    Raises
    ------
    ValueError
        If the file is damaged or holds no Wan patch embedding.
    """
    tensors = _read_header("diffusion_models", name)
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
    _read_header("loras", name)


def input_channels_of_lora(name: str) -> int | None:
    """Return the input channels to which a LoRA widens a model, or None if it does not."""
    header = _read_header("loras", name)
    if header is None or RESHAPE not in header:
        return None
    if header[RESHAPE] != ("I64", [5]):
        raise ValueError(f"{name} is no adapter for SwiftI2V (its {RESHAPE} is no shape); choose another.")
    with safe_open(model_path("loras", name), framework="pt") as weights:
        return int(weights.get_tensor(RESHAPE)[1])


def _read_header(folder: str, name: str) -> dict[str, tuple[str, list[int]]] | None:
    """Return type and shape of a file's tensors by name, None when it is no safetensors file."""
    path = model_path(folder, name)
    if not path.endswith((".safetensors", ".sft")):
        return None
    try:
        with safe_open(path, framework="pt") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118 (no mapping)
            return {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        reason = shortened(str(error))
        raise ValueError(f"{name} is no complete safetensors file ({reason}); download it again.") from None


def load_model(name: str, weight_dtype: str, channels: int | None = None) -> Any:
    """Load a diffusion model as ComfyUI's own loader does.

    Parameters
    ----------
    name
        File in ComfyUI's folder ``diffusion_models``.
    weight_dtype
        A key of `WEIGHT_DTYPES`.
    channels
        Input channels of the loaded model; added ones start at zero weight. None keeps the file's.
        ComfyUI widens the weight when it applies a LoRA, but not a weight that stays in RAM.

    Raises
    ------
    ValueError
        If ComfyUI cannot load the file.
    """
    path, options = model_path("diffusion_models", name), dict(WEIGHT_DTYPES[weight_dtype])
    with _naming_file(name):
        if channels is None:
            return load_diffusion_model(path, model_options=options)
        return load_widened(path, options, channels)


def load_widened(path: str, options: dict[str, Any], channels: int, disable_dynamic: bool = False) -> Any:
    """Load a diffusion model with more input channels than its file has.

    ComfyUI calls it again, with the same arguments, for a copy of the model: for compiled blocks, for the
    LoRAs of prompts, for another GPU.

    Parameters
    ----------
    path
        The file.
    options
        ComfyUI's options of a load.
    channels
        Input channels; added ones start at zero weight.
    disable_dynamic
        Whether all weights stay loaded while the model is used.
    """
    state, metadata = load_torch_file(path, return_metadata=True)
    _widen(state, channels)
    model = load_diffusion_model_state_dict(
        state, model_options=options, metadata=metadata, disable_dynamic=disable_dynamic
    )
    model.cached_patcher_init = (load_widened, (path, options, channels))
    return model


def _widen(state: dict[str, torch.Tensor], channels: int) -> None:
    key = next(key for key in state if key.endswith("patch_embedding.weight"))
    weight = state[key]
    state[key] = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    state[key][:, : weight.shape[1]] = weight


def apply_lora(model: Any, name: str, strength: float) -> Any:
    """Return a clone of ``model`` with a LoRA file applied, as ``LoraLoaderModelOnly`` does.

    Raises
    ------
    ValueError
        If ComfyUI cannot load the file, or if nothing in it fits the model.
    """
    path = model_path("loras", name)
    with _naming_file(name):
        lora = load_torch_file(path, safe_load=True)
        patched, _ = load_lora_for_models(model, None, lora, strength, 0)
    if not fitting_weights(model, patched):
        raise ValueError(
            f"{name} would change nothing: none of its {len(lora)} tensors has the name and size of a "
            "weight of this model; choose a LoRA that was made for the model file."
        )
    return patched


@contextmanager
def _naming_file(name: str) -> Iterator[None]:
    """Turn any error while loading a file into one sentence that names the file."""
    try:
        yield
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise
        reason = shortened(f"{type(error).__name__}: {error}")
        raise ValueError(
            f"{name} cannot be loaded ({reason}); download it again or choose another file."
        ) from error
