"""What can be wrong with a node's inputs, said in one sentence before any model loads."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from typing import Any

import torch

from ..swifti2v_core import geometry
from ..swifti2v_core.keyframes import keyframe_frames
from ..swifti2v_core.prompt_ranges import WHOLE_CLIP, FrameRange, check_ranges_in_clip, unused_ranges
from . import autoencoder, host, temporal

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

KEYFRAME_TIMES = "swifti2v_keyframe_times"
"""Entry of a LATENT of keyframes: the latent frame of the clip that each belongs to."""

PROMPT_FRAMES = "swifti2v_frames"
"""Option of an entry of a CONDITIONING: the `FrameRange` of the clip that it is for."""

COMPILING_TORCH = (2, 8)
"""First version of PyTorch that can be told which guards to keep."""

COMPILERS = ("g++", "clang++", "c++", "cl")
"""What PyTorch compiles code for processors with."""

LAUNCHER_COMPILERS = ("gcc", "clang", "cc", *COMPILERS)
"""What Triton compiles its launcher of GPU code with; on Windows it brings its own."""

SOCKETS = (
    ("LATENT", lambda value: isinstance(value, dict) and "samples" in value),
    ("IMAGE", lambda value: isinstance(value, torch.Tensor) and value.ndim == 4),
    ("SIGMAS", lambda value: isinstance(value, torch.Tensor) and value.ndim == 1),
    ("MODEL", lambda value: hasattr(value, "get_model_object")),
    ("VAE", lambda value: hasattr(value, "latent_channels")),
    ("GUIDER", lambda value: hasattr(value, "model_patcher")),
    ("NOISE", lambda value: hasattr(value, "generate_noise")),
    ("SAMPLER", lambda value: hasattr(value, "max_denoise")),
    ("CONDITIONING", lambda value: isinstance(value, list)),
)
"""How to recognize what came through a connection, in the user's words."""


def _name(value: Any) -> str:
    return next((name for name, fits in SOCKETS if fits(value)), type(value).__name__)


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


def motion_of(value: Any, photos: int) -> torch.Tensor:
    """Return ``value`` if it is an IMAGE with one clip, all of one length, for each of ``photos``."""
    checked = image(value, "The motion clip")
    if len(checked) % photos:
        raise ValueError(
            f"The motion clip has {len(checked)} frames for {photos} photos, but must hold one clip for "
            "each photo, all of one length, one behind the other; the nearest valid number of frames is "
            f"{geometry.nearest_multiple(len(checked), photos)}."
        )
    return checked


def latent(value: Any, what: str) -> torch.Tensor:
    """Return the samples of a video LATENT ``[B, C, T, h, w]`` without NaN."""
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, torch.Tensor):
        raise ValueError(f"{what} is a {_name(value)}, but must be a LATENT.")
    if samples.ndim != 5 or 0 in samples.shape:
        raise ValueError(
            f"{what} has shape {tuple(samples.shape)}, but a video latent has "
            "(batch, channels, latent frames, height, width), none of them 0."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(f"{what} holds NaN or infinite values; check the node that makes it.")
    return samples


def stage_two_latent(value: Any, what: str) -> torch.Tensor:
    """Return the samples of a video LATENT with the 48 channels of Stage II."""
    samples = latent(value, what)
    if samples.shape[1] != 48:
        raise ValueError(
            f"{what} has {samples.shape[1]} channels, but Stage II needs 48; encode it with the Wan2.2 VAE."
        )
    return samples


def decodable(value: Any, decoder: Any) -> torch.Tensor:
    """Return the samples of a video LATENT that a VAE can decode."""
    samples = latent(value, "samples")
    channels = autoencoder.vae_channels(vae(decoder))
    if samples.shape[1] != channels:
        maker = VAES.get(samples.shape[1], "the VAE that made it")
        raise ValueError(
            f"samples has {samples.shape[1]} channels, but this VAE decodes {channels}; load {maker}."
        )
    return samples


def vae(value: Any, channels: int | None = None) -> Any:
    """Return ``value`` if it is a VAE, with ``channels`` latent channels if they are given."""
    if not (hasattr(value, "decode") and hasattr(value, "latent_channels")):
        raise ValueError(f"The vae is a {_name(value)}, but must be a VAE.")
    found = autoencoder.vae_channels(value)
    if channels is not None and found != channels:
        raise ValueError(
            f"The VAE makes {found}-channel latents, but {channels} are needed; load {VAES[channels]}."
        )
    return value


def model(value: Any, what: str) -> Any:
    """Return ``value`` if it is a MODEL of the Wan family."""
    if not hasattr(value, "get_model_object"):
        raise ValueError(f"{what} is a {_name(value)}, but must be a MODEL.")
    if not host.is_wan(value):
        raise ValueError(
            f"{what} is of the class {type(value.model).__name__}, but SwiftI2V needs a Wan model "
            "(Wan2.2-I2V-A14B or TI2V-5B for Stage I, TI2V-5B or SwiftI2V weights for Stage II)."
        )
    return value


def stage_one_model(value: Any, what: str) -> int:
    """Return the latent channels (16 or 48) of a Stage I model that can take a photo."""
    channels, latents = host.input_channels(model(value, what)), host.latent_channels(value)
    check_stage_one_channels(channels, what)
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


def whole_windows(model: Any, segments: list[Any]) -> None:
    """Raise ValueError if a model's temporal windows would cut the windows of segments.

    These hold frames that are apart in the clip, the photo with all of them.
    """
    limit, longest = temporal.window_frames_of(model), max(len(segment.window) for segment in segments)
    if limit is not None and limit < longest:
        raise ValueError(
            f"The model comes from SwiftI2V Temporal Window Attention with window_frames {limit}, but a "
            f"segment's window of {longest} latent frames must see itself whole; connect the model without "
            f"that node, or set window_frames to {longest + longest % 2}."
        )


def reference(value: Any) -> torch.Tensor:
    """Return the samples of a ``z_ref`` LATENT that Stage II can work on."""
    samples = stage_two_latent(value, "z_ref")
    geometry.check_size(*geometry.pixel_size(samples))
    # A latent that holds the photo alone, as ComfyUI's own image-to-video nodes make it, has no motion.
    if not (samples[:, :, 1:] if samples.shape[2] > 1 else samples).any():
        raise ValueError(
            "z_ref is empty (all zeros), but Stage II needs the photo and the motion in it; "
            "connect SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples


def keyframe_numbers(value: Any, text: str, frames: int, photos: int) -> list[int]:
    """Return the frame numbers of an optional IMAGE of keyframes."""
    if value is None:
        if text.strip():
            host.logger.warning('keyframe_times is "%s", but no keyframes are connected.', text)
        return []
    image(value, "keyframes")
    if photos != 1:
        raise ValueError(
            f"The photo is a batch of {photos} images, but keyframes belong to one clip; pick one with "
            "ImageFromBatch, or disconnect the keyframes."
        )
    return keyframe_frames(text, len(value), frames)


def keyframe_latents(value: Any, z_ref: torch.Tensor) -> tuple[torch.Tensor | None, list[int]]:
    """Return the latent frames and times of an optional LATENT of keyframes."""
    if value is None:
        return None, []
    samples = stage_two_latent(value, "keyframes")
    times = value.get(KEYFRAME_TIMES)
    if times is None or len(times) != samples.shape[2]:
        raise ValueError(
            "keyframes carries no times, which a saved latent loses; connect the output keyframes of "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    if samples.shape[-2:] != z_ref.shape[-2:]:
        wide, high = geometry.pixel_size(z_ref)
        width, height = geometry.pixel_size(samples)
        raise ValueError(
            f"keyframes is {width}x{height}, but z_ref is {wide}x{high}; connect both outputs of one "
            "SwiftI2V Anchor Encode (Hybrid Reference)."
        )
    return samples, times


def same_shape(value: torch.Tensor, other: torch.Tensor) -> None:
    """Raise ValueError unless a started latent fits its reference."""
    if value.shape != other.shape:
        raise ValueError(
            f"latent has shape {tuple(value.shape)} and z_ref {tuple(other.shape)}, but both must "
            "be the same clip; connect the output of a segment sampler that used this z_ref."
        )


def conditioning(value: Any, what: str) -> Any:
    """Return ``value`` if it is a CONDITIONING that fits windows."""
    pairs = isinstance(value, list) and all(
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], torch.Tensor)
        and isinstance(entry[1], dict)
        for entry in value
    )
    if not (pairs and value):
        raise ValueError(f"{what} is a {_name(value)}, but must be a CONDITIONING.")
    for _, options in value:
        fixed(options, what)
    return value


def prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """Return both prompts, checked, with an empty one for each that is not connected."""
    first = empty_or_checked(model, positive, "positive")
    return first, empty_or_checked(model, negative, "negative")


def empty_or_checked(model: Any, value: Any, what: str) -> Any:
    """Return a prompt that fits the model, an empty one for None."""
    if value is None:
        return host.empty_conditioning(model)
    for text, _ in conditioning(value, what):
        text_width(model, text, what)
    return value


def text_width(model: Any, text: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a text embedding is as wide as the model reads it."""
    needed = host.text_width(model)
    if text.shape[-1] != needed:
        raise ValueError(
            f"{what} is {text.shape[-1]} wide, but this model reads {needed}; encode it with the umt5 "
            "text encoder (CLIP Loader, type wan)."
        )


def fixed(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition brings frames of its own, whose place no window knows."""
    for key in ("time_dim_concat", "context_latents", "reference_latents"):
        if options.get(key) is not None:
            raise ValueError(
                f"{what} carries {key}, extra frames that have no place in a window; "
                "remove the node that adds them."
            )


def filename_prefix(prefix: str) -> None:
    """Raise ValueError if a prefix names no file inside ComfyUI's output folder.

    ComfyUI says so only on saving, after minutes of work.
    """
    if not os.path.basename(prefix):
        raise ValueError(
            f'filename_prefix is "{prefix}", which names no file; '
            f'the nearest valid value is "{prefix}SwiftI2V".'
        )
    output = host.output_folder()
    target = os.path.abspath(os.path.join(output, prefix))
    if not target.startswith(os.path.join(output, "")):
        raise ValueError(
            f'filename_prefix is "{prefix}", which leaves ComfyUI\'s output folder; '
            f'the nearest valid value is "{os.path.basename(target)}".'
        )


def can_compile(device: str) -> None:
    """Raise ValueError if torch.compile will not find what it needs for a kind of device.

    Parameters
    ----------
    device
        As PyTorch names it, see `host.device_type`.
    """
    if torch.__version__ < COMPILING_TORCH:
        raise ValueError(
            f"compile_blocks is on, but needs PyTorch 2.8 and this is {torch.__version__}; update PyTorch "
            "or switch compile_blocks off."
        )
    gpu = device not in ("cpu", "mps")
    if gpu and find_spec("triton") is None:
        raise ValueError(
            "compile_blocks is on, but torch.compile needs Triton on this GPU and it is not installed; "
            "install it (triton-windows on Windows) or switch compile_blocks off."
        )
    needed = LAUNCHER_COMPILERS if gpu else COMPILERS
    if not (gpu and sys.platform == "win32") and not any(map(shutil.which, needed)):
        raise ValueError(
            f"compile_blocks is on, but torch.compile needs a compiler and found none of "
            f"{', '.join(needed)}; install one or switch compile_blocks off."
        )


def custom_sampling(noise: Any, guider: Any, sampler: Any, sigmas: Any) -> None:
    """Raise ValueError if a custom-sampling input holds something else or an unusable schedule."""
    for value, attribute, what in (
        (noise, "generate_noise", "NOISE"),
        (guider, "model_patcher", "GUIDER"),
        (sampler, "max_denoise", "SAMPLER"),  # a GUIDER has "sample", too
    ):
        if not hasattr(value, attribute):
            raise ValueError(f"{what.lower()} is a {_name(value)}, but must be a {what}.")
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1:
        raise ValueError(f"sigmas is a {_name(sigmas)}, but must be SIGMAS.")
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step (denoise 0 makes such a schedule); give it at least one.")
    if not (sigmas[0] <= 1 and (sigmas[:-1] > sigmas[1:]).all() and sigmas[-1] >= 0):
        first = ", ".join(f"{sigma:g}" for sigma in sigmas.tolist()[:6])
        raise ValueError(
            f"sigmas begins {first}, but a flow model needs values that fall at every step, from at most "
            "1 to at least 0; use a scheduler node with this model."
        )


def guider_conditions(guider: Any) -> None:
    """Raise ValueError if a guider's conditions do not fit windows or the model."""
    for name, conditions in guider.original_conds.items():
        for condition in conditions:
            fixed(condition, name)
            if condition.get("cross_attn") is not None:
                text_width(guider.model_patcher, condition["cross_attn"], name)


def without_ranges(conditioning: Any) -> Any:
    """Return a CONDITIONING if none of its entries has a range yet, which a second one would replace."""
    for _, options in conditioning:
        if PROMPT_FRAMES in options:
            start, end = options[PROMPT_FRAMES]
            raise ValueError(
                f"conditioning has a range already (start_frame {start}, end_frame {end}) and can have "
                "only one; connect it to the input before, and the prompt for this range to conditioning."
            )
    return conditioning


def ranges_of(conditions: list[dict[str, Any]]) -> list[FrameRange]:
    """Return the range of every condition of a GUIDER."""
    return [condition.get(PROMPT_FRAMES, WHOLE_CLIP) for condition in conditions]


def prompt_ranges(guider: Any, segments: list[Any]) -> None:
    """Raise ValueError if a guider's prompts are all for frames behind the clip; tell of unused ones."""
    frames = geometry.pixel_frame_count(segments[-1].noisy[-1] + 1)
    for name, conditions in guider.original_conds.items():
        ranges = ranges_of(conditions)
        check_ranges_in_clip(ranges, frames, name)
        for start, end in unused_ranges(ranges, segments):
            host.logger.warning(
                "%s has a prompt with start_frame %s and end_frame %s that no segment uses: a segment "
                "takes the prompts for its middle frame.",
                name,
                start,
                end,
            )


def from_pure_noise(sigmas: torch.Tensor) -> torch.Tensor:
    """Return ``sigmas`` if they start at pure noise; Stage I has no frames to start from."""
    if sigmas[0] < 1:
        raise ValueError(
            f"timesteps starts at sigma {sigmas[0]:g}, but Stage I starts from pure noise; the nearest "
            "valid first timestep is 1000."
        )
    return sigmas


def segment_range(start: int, end: int, count: int, resumed: bool) -> tuple[int, int]:
    """Return the segments to make as a range; ``end`` 0 means all."""
    end = end or count
    if not 0 <= start < end <= count:
        raise ValueError(
            f"start_segment is {start} and end_segment {end}, but the clip has {count} segments; "
            f"choose a start from 0 to {count - 1} and an end above it, at most {count}."
        )
    if start and not resumed:
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
