"""A MODEL: its channels and its shift."""

from __future__ import annotations

import math
from typing import Any

import torch
from comfy.lora import calculate_shape
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

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
