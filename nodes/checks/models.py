"""Models and autoencoders."""

from __future__ import annotations

import math
from typing import Any

from ..comfyui.models import (
    foreign_schedule,
    input_channels,
    is_wan,
    latent_channels,
    model_shift,
)
from ..comfyui.temporal_model import window_frames_of
from ..comfyui.vae import vae_channels
from .describe import kind_of

STAGE_TWO_KINDS = {48: "plain", 96: "concat"}
"""Kinds of Stage II weights by input channels: 48 noisy, or 48 noisy and 48 reference."""

STAGE_ONE_LATENTS = {36: 16, 48: 48}
"""Latent channels of Stage I models by input channels (Wan2.2-I2V-A14B, TI2V-5B)."""

VAES = {16: "the Wan2.1 VAE", 48: "the Wan2.2 VAE"}
"""Autoencoders by latent channels."""

FUN_VARIANTS = {
    100: "the Wan2.2-Fun-5B InP or Camera variant (48 noisy + 4 mask + 48 image channels)",
    148: "the Wan2.2-Fun-5B Control variant (48 noisy + 48 control + 4 mask + 48 image channels)",
}
"""Relatives of TI2V-5B that take other conditions than Stage II gives."""


def check_vae(value: Any, channels: int | None = None) -> None:
    """Raise ValueError unless ``value`` is a VAE, with ``channels`` latent channels if they are given."""
    if not (hasattr(value, "decode") and hasattr(value, "latent_channels")):
        raise ValueError(f"The vae is a {kind_of(value)}, but must be a VAE.")
    found = vae_channels(value)
    if channels is not None and found != channels:
        raise ValueError(
            f"The VAE makes {found}-channel latents, but {channels} are needed; load {VAES[channels]}."
        )


def check_model(value: Any, what: str) -> None:
    """Raise ValueError unless ``value`` is a MODEL of the Wan family."""
    if not hasattr(value, "get_model_object"):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be a MODEL.")
    if not is_wan(value):
        raise ValueError(
            f"{what} is of the class {type(value.model).__name__}, but SwiftI2V needs a Wan model "
            "(Wan2.2-I2V-A14B or TI2V-5B for Stage I, TI2V-5B or SwiftI2V weights for Stage II)."
        )


NODES_OF_SCHEDULES = {
    "ModelSamplingDiscreteFlow": "ModelSamplingAuraFlow",
    "ModelSamplingCosmosRFlow": "ModelSamplingContinuousEDM",
    "StableCascadeSampling": "ModelSamplingStableCascade",
}
"""ComfyUI's nodes that set a schedule of another class than their own name."""


def check_schedule(model: Any, what: str) -> None:
    """Raise ValueError unless a MODEL is sampled as Wan models are trained."""
    foreign = foreign_schedule(model)
    if foreign is not None:
        node = NODES_OF_SCHEDULES.get(foreign, foreign)
        raise ValueError(
            f"{what} has the schedule that the node {node} sets, but Wan models need flow "
            "matching with a shift; use ModelSamplingSD3 with shift 5 in its place."
        )
    shift = model_shift(model)
    if not 0 < shift < math.inf:
        raise ValueError(
            f"{what} has shift {shift:g}, but it must be above 0; the usual value is 5, which "
            "ModelSamplingSD3 sets."
        )


def read_stage_one_latents(value: Any, what: str) -> int:
    """Return the latent channels (16 or 48) of a Stage I model that can take a photo."""
    check_model(value, what)
    channels, latents = input_channels(value), latent_channels(value)
    check_stage_one_channels(channels, what)
    check_schedule(value, what)
    if STAGE_ONE_LATENTS[channels] != latents:
        raise ValueError(
            f"{what} has {channels} input channels for {latents}-channel latents: it is a control model "
            "that expects other images than the photo; load Wan2.2-I2V-A14B (36 channels) or "
            "Wan2.2-TI2V-5B (48 channels)."
        )
    return latents


def check_stage_one_channels(channels: int, what: str) -> None:
    """Raise ValueError unless a Wan model with these input channels takes a photo in Stage I."""
    if channels in STAGE_ONE_LATENTS:
        return
    reasons = {
        16: "is a text-to-video model that cannot take a photo",
        96: "is a SwiftI2V Stage II model",
        **{number: f"is {variant}" for number, variant in FUN_VARIANTS.items()},
    }
    reason = reasons.get(channels, "is not a kind of Stage I this pack knows")
    raise ValueError(
        f"{what} has {channels} input channels: it {reason}; load Wan2.2-I2V-A14B (36 channels) or "
        "Wan2.2-TI2V-5B (48 channels)."
    )


def stage_two_kind_of_channels(channels: int) -> str:
    """Return the kind ("plain" or "concat") of Stage II weights by their input channels."""
    if channels in STAGE_TWO_KINDS:
        return STAGE_TWO_KINDS[channels]
    what = FUN_VARIANTS.get(channels)
    reason = (
        f"that is {what}, which expects a mask and other images in these channels"
        if what
        else "that is no Stage II model"
    )
    raise ValueError(
        f"The model has {channels} input channels: {reason}; load SwiftI2V Stage II weights "
        "(96 channels) or Wan2.2-TI2V-5B (48 channels)."
    )


def read_stage_two_kind(value: Any) -> str:
    """Return the kind of a Stage II MODEL, see `stage_two_kind_of_channels`."""
    check_model(value, "The Stage II model")
    kind = stage_two_kind_of_channels(input_channels(value))
    if latent_channels(value) != 48:
        raise ValueError(
            f"The model makes {latent_channels(value)}-channel latents, but Stage II needs 48; "
            "load SwiftI2V Stage II weights or Wan2.2-TI2V-5B."
        )
    check_schedule(value, "The Stage II model")
    return kind


def check_no_context_windows(guider: Any) -> None:
    """Raise ValueError if another node cuts samplings into windows of its own along time."""
    for options in (guider.model_patcher.model_options, getattr(guider, "model_options", None) or {}):
        handler = options.get("context_handler")
        if handler is not None:
            raise ValueError(
                f"The model has context windows ({type(handler).__name__}, as the node Wan Context Windows "
                "adds them), but a segment's window must see itself whole; connect the model without that "
                "node."
            )


def check_whole_windows(model: Any, segments: list[Any]) -> None:
    """Raise ValueError if a model's temporal windows would cut the windows of segments.

    A segment's window mixes distant frames; temporal windows would separate the photo from the rest.
    """
    limit = window_frames_of(model)
    longest = max(len(segment.window) for segment in segments)
    if limit is not None and limit < longest:
        raise ValueError(
            f"The model comes from SwiftI2V Temporal Window Attention with window_frames {limit}, but a "
            f"segment's window of {longest} latent frames must see itself whole; connect the model without "
            f"that node, or set window_frames to {longest + longest % 2}."
        )
