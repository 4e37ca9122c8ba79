"""What the nodes ask of ComfyUI's internals, which `internals` looks up."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...swifti2v_core.geometry import LATENT_FACTOR
from ...swifti2v_core.seeds import clip_seed
from . import attention, compiled_model, internals, memory, temporal_model, window_model
from .internals import internal, need, of_model, works

logger = logging.getLogger("SwiftI2V")

PLAIN_ATTENTION = None
"""ComfyUI's attention on PyTorch's kernels, as overrides are handed it; None if it is not known."""
if works(internals.KERNELS):
    PLAIN_ATTENTION = internal("comfy.ldm.modules.attention.attention_pytorch")
    PLAIN_ATTENTION = getattr(PLAIN_ATTENTION, "__wrapped__", PLAIN_ATTENTION)

COMPILER = "inductor"
"""Backend of torch.compile."""

WAN_PARTS = ("patch_embedding", "text_embedding", "time_projection", "head")
"""What Wan networks are made of: names that stay, because the weights in every file have them."""

PATCH_EMBEDDING = "diffusion_model.patch_embedding.weight"
"""The weight whose second size is the number of input channels."""

# --- Models ---------------------------------------------------------------------------------------


def input_channels(model: Any) -> int:
    """Return the channels that a Wan model takes (noisy latent and concatenated conditions).

    A LoRA with a ``reshape_weight`` makes them more than the file of the model had: SwiftI2V adapters for
    Wan2.2-TI2V-5B do, as ComfyUI's control LoRAs for Flux.
    """
    channels = of_model(model, "diffusion_model.in_dim")
    patches = model.patches.get(PATCH_EMBEDDING)
    if not patches or not works(internals.ADAPTERS):
        return channels
    # Not the weight itself: models share it, and ComfyUI may have just patched it for another one.
    unpatched = torch.empty(1, channels, device="meta")
    return internal("comfy.lora.calculate_shape")(patches, unpatched, PATCH_EMBEDDING)[1]


def latent_channels(model: Any) -> int:
    """Return the channels of the latents that a model generates."""
    return of_model(model, "latent_format.latent_channels")


def is_wan(model: Any) -> bool:
    """Tell whether a MODEL is of the Wan family, whose windows this pack knows how to place."""
    network = model.get_model_object("diffusion_model")
    return all(hasattr(network, part) for part in WAN_PARTS)


def model_shift(model: Any) -> float:
    """Return the resolution shift of a flow model."""
    return float(of_model(model, "model_sampling.shift"))


def with_shift(model: Any, shift: float) -> Any:
    """Return a clone of ``model`` with another resolution shift; the input keeps its own."""
    clone = model.clone()

    flow = internal("comfy.model_sampling.ModelSamplingDiscreteFlow")
    # Built from the model's own settings, like ComfyUI's ModelSamplingSD3 node.
    flow_sampling = type("FlowSampling", (flow, internal("comfy.model_sampling.CONST")), {})
    sampling = flow_sampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    clone.add_object_patch("model_sampling", sampling)
    return clone


def with_compiled_blocks(model: Any) -> Any:
    """Return a clone of ``model`` whose blocks are compiled in the first run, one by one.

    Every length of the sequence is compiled for itself: a clip has few, and they come back.
    """
    # As ComfyUI's TorchCompileModel: weights must not be moved in and out below compiled code.
    clone = model.clone(disable_dynamic=True)
    blocks = len(of_model(clone, "diffusion_model.blocks"))
    compile_parts = internal("comfy_api.torch_helpers.set_torch_compile_wrapper")
    compile_parts(
        clone,
        COMPILER,
        options={"guard_filter_fn": compiled_model.guards_to_keep},
        dynamic=False,
        keys=[f"diffusion_model.blocks.{index}" for index in range(blocks)],
    )
    for wrapper in (compiled_model.allow_many_graphs, attention.installer(PLAIN_ATTENTION)):
        place = internal("comfy.patcher_extension.WrappersMP.APPLY_MODEL")
        clone.add_wrapper_with_key(place, window_model.KEY, wrapper)
    return clone


def with_temporal_windows(model: Any, window_frames: int) -> Any:
    """Return a clone of ``model`` whose self-attention runs inside windows of ``window_frames``."""
    need(internals.TEMPORAL_WINDOWS, model=model)
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[temporal_model.KEY] = temporal_model.TemporalWindows(window_frames, PLAIN_ATTENTION)
    for place, wrapper in (
        (internal("comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL"), temporal_model.temporal_forward),
        (internal("comfy.patcher_extension.WrappersMP.APPLY_MODEL"), temporal_model.tell_apart),
    ):
        clone.remove_wrappers_with_key(place, temporal_model.KEY)  # of a model that was patched before
        clone.add_wrapper_with_key(place, temporal_model.KEY, wrapper)
    return clone


def device_type() -> str:
    """Return the kind of device that ComfyUI computes on, as PyTorch names it."""
    return internal("comfy.model_management.get_torch_device")().type


def text_width(model: Any) -> int:
    """Return the width of the text embeddings that a Wan model reads."""
    return of_model(model, "diffusion_model.text_dim")


def empty_conditioning(model: Any) -> list[Any]:
    """Return a CONDITIONING without text, for graphs that load no text encoder."""
    return [[torch.zeros(1, 8, text_width(model)), {}]]


def extend_conditioning(conditioning: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a CONDITIONING with ``values`` added to every entry."""
    return [[text, {**options, **values}] for text, options in conditioning]


# --- Sampling -------------------------------------------------------------------------------------


def sampler_names() -> list[str]:
    """Return the samplers that ComfyUI offers."""
    if not works(internals.SAMPLER_LIST):
        return ["euler"]
    return list(internal("comfy.samplers.SAMPLER_NAMES"))


def sampler_object(name: str) -> Any:
    """Return a SAMPLER by name."""
    return internal("comfy.samplers.sampler_object")(name)


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return a GUIDER with classifier-free guidance; 1 skips the negative prompt."""
    guider = internal("comfy.samplers.CFGGuider")(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def motion_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return the GUIDER of a Stage I sampling, with the attention that suits the card."""
    guider = cfg_guider(model, positive, negative, cfg)
    clone_options = internal("comfy.model_patcher.create_model_options_clone")
    guider.model_options = clone_options(guider.model_options)
    attention.install(guider.model_options.setdefault("transformer_options", {}), PLAIN_ATTENTION)
    return guider


@dataclass(frozen=True)
class SeededNoise:
    """A NOISE that draws ComfyUI's noise of a seed; further clips of a batch take the next seeds."""

    seed: int

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """Return noise in the shape of ``latent["samples"]``, for each clip as if it were alone."""
        clips = latent["samples"].split(1)
        # A clip picked from a batch keeps its number, and so its noise.
        numbers = latent.get("batch_index") or range(len(clips))
        seeded = zip(clips, (clip_seed(self.seed, number) for number in numbers), strict=True)
        prepare = internal("comfy.sample.prepare_noise")
        return torch.cat([prepare(*clip_and_seed) for clip_and_seed in seeded])


def sample(
    guider: Any,
    noise: torch.Tensor,
    latent: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    callback: Callable[..., None],
    seed: int,
) -> torch.Tensor:
    """Run one native sampling and bring the result to where ComfyUI keeps latents."""
    result = guider.sample(
        noise,
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return to_storage(result)


def to_storage(latent: torch.Tensor) -> torch.Tensor:
    """Move a latent to the device where ComfyUI keeps results between nodes."""
    device = torch.device("cpu")
    if works(internals.GPU_RESULTS):
        device = internal("comfy.model_management.intermediate_device")()
    return latent.to(device=device, dtype=torch.float32)


# --- Windows --------------------------------------------------------------------------------------


def window_guider(guider: Any) -> Any:
    """Return a copy of a GUIDER whose model places windows; the guider given stays as it is.

    The model is a clone with one more wrapper around its forward, the innermost, so that wrappers of
    other packs run around it, and one around ComfyUI's estimate of the memory.
    """
    clone = copy.copy(guider)
    clone.model_patcher = guider.model_patcher.clone()
    around_network = internal("comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL")
    clone.model_patcher.add_wrapper_with_key(around_network, window_model.KEY, window_model.window_forward)
    if works(internals.ESTIMATES, guider.model_patcher):
        around_loading = internal("comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING")
        clone.model_patcher.add_wrapper_with_key(
            around_loading, window_model.KEY, window_model.count_kept_context
        )
    return clone


def aim_guider(
    clone: Any, guider: Any, view: window_model.WindowView, concat_latent: torch.Tensor | None
) -> None:
    """Point a guider from `window_guider` at one window.

    Parameters
    ----------
    clone
        The guider to change.
    guider
        The GUIDER it was made from: conditions and options are taken from it anew.
    view
        The window.
    concat_latent
        Reference channels of the window, ``[B, 48, W, h, w]`` in VAE space, or None for plain
        weights.
    """
    clone_options = internal("comfy.model_patcher.create_model_options_clone")
    clone.model_options = clone_options(guider.model_options)
    options = clone.model_options.setdefault("transformer_options", {})
    options[window_model.KEY] = view
    if works(internals.ESTIMATES, guider.model_patcher):
        options[window_model.KEPT_BYTES] = window_model.kept_bytes(
            guider.model_patcher, view, _conditions_run(guider)
        )
    attention.install(options, PLAIN_ATTENTION)
    added = {} if concat_latent is None else {"concat_latent_image": concat_latent}
    clone.original_conds = {
        name: [{**condition, **added} for condition in conditions]
        for name, conditions in guider.original_conds.items()
    }


def window_need(
    guider: Any, view: window_model.WindowView, frames: int, width: int, height: int
) -> float | None:
    """Return what a window of a pixel size takes at most, in bytes; None if ComfyUI cannot tell."""
    model = guider.model_patcher
    shape = (1, latent_channels(model), frames, height // LATENT_FACTOR, width // LATENT_FACTOR)
    need = memory.sampling_need(model, shape)
    return None if need is None else need + window_model.kept_bytes(model, view, _conditions_run(guider))


def _conditions_run(guider: Any) -> int:
    """Return how many conditions a guider runs per step; without guidance ComfyUI skips the negative."""
    counts = {name: len(conditions) for name, conditions in guider.original_conds.items()}
    plain = internal("comfy.samplers.CFGGuider.predict_noise")
    usual = getattr(type(guider), "predict_noise", None) is plain
    if usual and math.isclose(guider.cfg, 1) and not guider.model_options.get("disable_cfg1_optimization"):
        counts.pop("negative", None)
    return sum(counts.values())
