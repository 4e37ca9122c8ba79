"""What can be wrong with a node's inputs, said in one sentence before any model loads."""

from __future__ import annotations

from typing import Any

import torch

from ..swifti2v_core import geometry
from . import host

STAGE_TWO_KINDS = {48: "plain", 96: "concat"}
"""Kinds of Stage II weights by input channels: 48 noisy, or 48 noisy and 48 reference."""

FUN_VARIANTS = {
    100: "the Wan2.2-Fun-5B InP or Camera variant (48 noisy + 4 mask + 48 image channels)",
    148: "the Wan2.2-Fun-5B Control variant (48 noisy + 48 control + 4 mask + 48 image channels)",
}
"""Relatives of TI2V-5B that take other conditions than Stage II gives."""


def _name(value: Any) -> str:
    return type(value).__name__


def image(value: Any, what: str) -> torch.Tensor:
    """Return ``value`` if it is an IMAGE ``[F, H, W, 3 or 4]`` with frames and without NaN."""
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"{what} is a {_name(value)}, but must be an IMAGE.")
    if value.ndim != 4 or value.shape[-1] not in (3, 4):
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, but an IMAGE has (frames, height, width, 3)."
        )
    if 0 in value.shape:
        raise ValueError(f"{what} is empty (shape {tuple(value.shape)}); connect at least one frame.")
    if not torch.isfinite(value).all():
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    return value


def photo(value: Any) -> torch.Tensor:
    """Return ``value`` if it is one single IMAGE."""
    checked = image(value, "The photo")
    if len(checked) != 1:
        raise ValueError(
            f"The photo is a batch of {len(checked)} images, but one photo makes one clip; "
            "pick one with ImageFromBatch."
        )
    return checked


def latent(value: Any, what: str, channels: int | None = None) -> torch.Tensor:
    """Return the samples of a video LATENT ``[B, C, T, h, w]`` without NaN."""
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, torch.Tensor):
        raise ValueError(f"{what} is a {_name(value)}, but must be a LATENT.")
    if samples.ndim != 5 or 0 in samples.shape:
        raise ValueError(
            f"{what} has shape {tuple(samples.shape)}, but a video latent has "
            "(batch, channels, latent frames, height, width), none of them 0."
        )
    if channels is not None and samples.shape[1] != channels:
        raise ValueError(
            f"{what} has {samples.shape[1]} channels, but {channels} are needed; "
            f"encode it with the {'Wan2.2' if channels == 48 else 'Wan2.1'} VAE."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    return samples


def vae(value: Any, channels: int | None = None) -> Any:
    """Return ``value`` if it is a VAE, with ``channels`` latent channels if they are given."""
    if not (hasattr(value, "decode") and hasattr(value, "latent_channels")):
        raise ValueError(f"The vae is a {_name(value)}, but must be a VAE.")
    found = host.vae_channels(value)
    if channels is not None and found != channels:
        wanted = {16: "the Wan2.1 VAE", 48: "the Wan2.2 VAE"}.get(channels, "another VAE")
        raise ValueError(
            f"The VAE makes {found}-channel latents, but {channels} are needed; load {wanted}."
        )
    return value


def model(value: Any, what: str) -> Any:
    """Return ``value`` if it is a MODEL of the Wan family."""
    if not hasattr(value, "get_model_object"):
        raise ValueError(f"{what} is a {_name(value)}, but must be a MODEL.")
    if not host.is_wan(value):
        raise ValueError(
            f"{what} is a {_name(value.model)} model, but SwiftI2V needs a Wan model "
            "(Wan2.2-I2V-A14B or TI2V-5B for Stage I, TI2V-5B or SwiftI2V weights for Stage II)."
        )
    return value


def stage_one_model(value: Any, what: str) -> int:
    """Return the latent channels (16 or 48) of a Stage I model that can take a photo."""
    channels, latents = host.input_channels(model(value, what)), host.latent_channels(value)
    check_stage_one_channels(channels, what)
    return latents


def check_stage_one_channels(channels: int, what: str) -> None:
    """Raise ValueError unless a Wan model with these input channels takes a photo in Stage I."""
    if channels in (36, 48):
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


def stage_two_kind(channels: int) -> str:
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


def stage_two_model(value: Any) -> str:
    """Return the kind of a Stage II MODEL, see `stage_two_kind`."""
    kind = stage_two_kind(host.input_channels(model(value, "The Stage II model")))
    if host.latent_channels(value) != 48:
        raise ValueError(
            f"The model makes {host.latent_channels(value)}-channel latents, but Stage II needs 48; "
            "load SwiftI2V Stage II weights or Wan2.2-TI2V-5B."
        )
    return kind


def reference(value: Any) -> torch.Tensor:
    """Return the samples of a ``z_ref`` LATENT that Stage II can work on."""
    samples = latent(value, "z_ref", channels=48)
    height, width = samples.shape[-2] * 16, samples.shape[-1] * 16
    geometry.check_size(width, height)
    if not samples.any():
        raise ValueError(
            "z_ref is empty (all zeros), but Stage II needs the photo and the motion in it; "
            "connect SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples


def same_shape(value: torch.Tensor, other: torch.Tensor) -> None:
    """Raise ValueError unless a started latent fits its reference."""
    if value.shape != other.shape:
        raise ValueError(
            f"latent has shape {tuple(value.shape)} and z_ref {tuple(other.shape)}, but both must "
            "be the same clip; connect the output of a segment sampler that used this z_ref."
        )


def conditioning(value: Any, what: str) -> Any:
    """Return ``value`` if it is a CONDITIONING that fits windows."""
    if not isinstance(value, list) or not all(len(entry) == 2 for entry in value):
        raise ValueError(f"{what} is a {_name(value)}, but must be a CONDITIONING.")
    for _, options in value:
        fixed(options, what)
    return value


def prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """Return both prompts, checked, with an empty one for each that is not connected."""
    given = ((positive, "positive"), (negative, "negative"))
    first, second = (
        host.empty_conditioning(model) if value is None else conditioning(value, name)
        for value, name in given
    )
    return first, second


def fixed(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition brings frames of its own, whose place no window knows."""
    for key in ("time_dim_concat", "context_latents", "reference_latents"):
        if options.get(key) is not None:
            raise ValueError(
                f"{what} carries {key}, extra frames that have no place in a window; "
                "remove the node that adds them."
            )


def custom_sampling(noise: Any, guider: Any, sampler: Any, sigmas: Any) -> None:
    """Raise ValueError if a custom-sampling socket holds something else or an unusable schedule."""
    for value, attribute, what in (
        (noise, "generate_noise", "NOISE"),
        (guider, "model_patcher", "GUIDER"),
        (sampler, "sample", "SAMPLER"),
    ):
        if not hasattr(value, attribute):
            raise ValueError(f"{what.lower()} is a {_name(value)}, but must be a {what}.")
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        raise ValueError(f"sigmas is a {_name(sigmas)}, but must be SIGMAS.")
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step (denoise 0 makes such a schedule); give it at least one.")
    if not (sigmas[0] <= 1 and (sigmas[:-1] > sigmas[1:]).all() and sigmas[-1] >= 0):
        raise ValueError(
            f"sigmas goes from {sigmas[0]:g} to {sigmas[-1]:g}, but a flow model needs values that "
            "fall from at most 1 to 0; use a scheduler node with this model."
        )
    for name, conditions in guider.original_conds.items():
        for condition in conditions:
            fixed(condition, name)


def segment_range(start: int, end: int, count: int, latent_given: Any) -> tuple[int, int]:
    """Return the segments to make as a range; ``end`` 0 means all."""
    end = end or count
    if not 0 <= start < end <= count:
        raise ValueError(
            f"start_segment is {start} and end_segment {end}, but the clip has {count} segments; "
            f"choose a start from 0 to {count - 1} and an end above it, at most {count}."
        )
    if start and latent_given is None:
        raise ValueError(
            f"start_segment is {start}, but no latent holds the segments before it; connect the "
            "latent to go on from, or start at 0."
        )
    return start, end


def finite_segment(result: torch.Tensor, segment: Any) -> None:
    """Raise ValueError if a segment came out as NaN, before later segments build on it."""
    if not torch.isfinite(result[:, :, segment.clean :]).all():
        raise ValueError(
            f"Segment {segment.index} (latent frames {segment.noisy[0]} to {segment.noisy[-1]}) came "
            "out as NaN; usual causes are a patched attention or fp16 weights that overflow, so try "
            "without attention patches or with bf16 weights."
        )
