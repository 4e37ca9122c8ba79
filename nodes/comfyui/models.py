"""A MODEL: its channels, its shift, and how one is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy.lora import calculate_shape
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
from comfy.sd import load_diffusion_model, load_diffusion_model_state_dict, load_lora_for_models
from comfy.utils import load_torch_file

from ...swifti2v_core.text import shortened
from . import memory
from .lora_fit import fitting_weights
from .model_files import model_path

WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The same choices as ComfyUI's own diffusion model loader."""

WAN_PARTS = ("patch_embedding", "text_embedding", "time_projection", "head")
"""Modules of every Wan network; the names are stable because weight files use them."""

PATCH_EMBEDDING = "diffusion_model.patch_embedding.weight"
"""The weight whose second dimension is the number of input channels."""


class FlowSampling(ModelSamplingDiscreteFlow, CONST):
    """Flow matching with a shift, composed as in ComfyUI's ModelSamplingSD3 node."""


def input_channels(model: Any) -> int:
    """Return the input channels of a Wan model: noisy latent plus concatenated conditions.

    A LoRA with a ``reshape_weight`` adds channels to those of the file: SwiftI2V adapters for
    Wan2.2-TI2V-5B do, as ComfyUI's control LoRAs for Flux.
    """
    channels = model.get_model_object("diffusion_model").in_dim
    patches = model.patches.get(PATCH_EMBEDDING)
    if not patches:
        return channels
    # Not the weight itself: models share it, and ComfyUI may just have patched it for another one.
    unpatched = torch.empty(1, channels, device="meta")
    return calculate_shape(patches, unpatched, PATCH_EMBEDDING)[1]


def latent_channels(model: Any) -> int:
    """Return the channels of the latents that a model generates."""
    return model.get_model_object("latent_format").latent_channels


def text_width(model: Any) -> int:
    """Return the width of the text embeddings that a Wan model reads."""
    return model.get_model_object("diffusion_model").text_dim


def is_wan(model: Any) -> bool:
    """Return whether a MODEL is of the Wan family, the only one whose windows this pack can place."""
    network = model.get_model_object("diffusion_model")
    return all(hasattr(network, part) for part in WAN_PARTS)


def model_shift(model: Any) -> float:
    """Return the resolution shift of a flow model."""
    return float(model.get_model_object("model_sampling").shift)


def has_chosen_shift(model: Any) -> bool:
    """Return whether the shift of a MODEL was chosen in a loader of this pack, see `with_shift`."""
    return isinstance(model.get_model_object("model_sampling"), FlowSampling)


def foreign_schedule(model: Any) -> str | None:
    """Return the class of a MODEL's schedule if it is none that Wan models know, None if it is.

    They know flow matching with timesteps of 0 to 1000 and a shift as `swifti2v_core.sigmas` applies it.
    """
    sampling = model.get_model_object("model_sampling")
    half, middle = torch.tensor([0.5]), torch.tensor([500.0])
    try:
        shift = float(sampling.shift)
        shifted = shift * 0.5 / (1 + (shift - 1) * 0.5)
        if (
            isinstance(sampling, CONST)
            and math.isclose(float(sampling.sigma(middle)), shifted, abs_tol=1e-4)
            and math.isclose(float(sampling.timestep(half)), float(middle), abs_tol=1e-2)
        ):
            return None
    except (AttributeError, TypeError, ValueError):
        pass
    own, comfyuis = type(sampling), ModelSamplingDiscreteFlow.__module__
    return next((base.__name__ for base in own.__mro__ if base.__module__ == comfyuis), own.__name__)


def with_shift(model: Any, shift: float) -> Any:
    """Return a clone of ``model`` with another resolution shift; the input keeps its own."""
    clone = model.clone()
    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    clone.add_object_patch("model_sampling", sampling)
    return clone


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
