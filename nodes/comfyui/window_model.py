"""A GUIDER aimed at one window, and the network's forward on that window."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from comfy.samplers import CFGGuider

from ...swifti2v_core.attention.read_only import ReadOnlyContext
from ...swifti2v_core.geometry import LATENT_FACTOR
from ...swifti2v_core.stage_two.reference_strength import (
    Reference,
    inputs_to_run,
    mix_predictions,
    predictions_per_step,
)
from . import memory
from .attention_rules import ReadOnlyForward
from .forward import FORWARD_KEY, add_forward, frame_tokens, plan_forward, run_forward
from .models import latent_channels

WINDOW_OPTION = "SwiftI2V"
"""Our name among transformer options, and of the wrapper around the estimate of the memory."""

WINDOW_KEY = f"{WINDOW_OPTION}_window"
"""Our name among the wrappers around the network."""

KEPT_BYTES_OPTION = f"{WINDOW_OPTION}_kept_bytes"
"""Transformer option: memory that read-only context will keep, unknown to ComfyUI's estimate."""


@dataclass(frozen=True)
class WindowView:
    """The window as the model needs to know it, carried in the transformer options.

    Attributes
    ----------
    positions
        Time position of every latent frame of the window.
    clean
        Number of leading clean frames.
    read_only
        Kept keys and values of the clean frames, or None for bidirectional context.
    reference_strength
        How much the noisy frames follow the reference channels, see `reference_strength.mix_predictions`.
    """

    positions: tuple[int, ...]
    clean: int
    read_only: ReadOnlyContext | None = None
    reference_strength: float = 1.0


def window_guider(guider: Any) -> Any:
    """Return a copy of a GUIDER whose model places windows; the guider given stays as it is.

    Its model is a clone with more wrappers: around the forward, the innermost, so that wrappers of other
    packs run around it, and around ComfyUI's estimate of the memory.
    """
    clone = copy.copy(guider)
    clone.model_patcher = guider.model_patcher.clone()
    add_forward(clone.model_patcher, WINDOW_KEY, window_forward)
    clone.model_patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, WINDOW_OPTION, count_kept_context)
    return clone


def aim_guider(clone: Any, guider: Any, view: WindowView, concat_latent: torch.Tensor | None) -> None:
    """Point a guider from `window_guider` at one window.

    Parameters
    ----------
    clone
        The guider to change.
    guider
        The GUIDER it was made from; its conditions and options are read again for every window.
    view
        The window.
    concat_latent
        Reference channels of the window, ``[B, 48, W, h, w]`` in VAE space, or None for plain
        weights.
    """
    clone.model_options = create_model_options_clone(guider.model_options)
    options = clone.model_options.setdefault("transformer_options", {})
    options[WINDOW_OPTION] = view
    options[KEPT_BYTES_OPTION] = kept_bytes(guider.model_patcher, view, _conditions_run(guider))
    added = {} if concat_latent is None else {"concat_latent_image": concat_latent}
    clone.original_conds = {
        name: [{**condition, **added} for condition in conditions]
        for name, conditions in guider.original_conds.items()
    }


def window_bytes(guider: Any, view: WindowView, frames: int, width: int, height: int) -> float:
    """Return the memory that a window of a pixel size takes at most."""
    model = guider.model_patcher
    shape = (1, latent_channels(model), frames, height // LATENT_FACTOR, width // LATENT_FACTOR)
    return memory.sampling_bytes(model, shape) + kept_bytes(model, view, _conditions_run(guider))


def _conditions_run(guider: Any) -> int:
    """Return how many conditions a guider runs per step; without guidance ComfyUI skips the negative."""
    counts = {name: len(conditions) for name, conditions in guider.original_conds.items()}
    usual = getattr(type(guider), "predict_noise", None) is CFGGuider.predict_noise
    if usual and math.isclose(guider.cfg, 1) and not guider.model_options.get("disable_cfg1_optimization"):
        counts.pop("negative", None)
    return sum(counts.values())


@torch.compiler.disable(recursive=False)
def window_forward(
    executor: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None = None,
    time_dim_concat: torch.Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Run the Wan network on a window with the window's own time positions.

    ``WanModel._forward`` numbers the frames 0, 1, 2, …, also under ComfyUI's context windows. So the
    network's ``forward_orig`` is called with rotary frequencies concatenated per frame.

    A reference strength runs it twice, here and not around the sampler's guidance: every wrapper around
    the network, ComfyUI's or the user's, keeps seeing one forward per condition.

    Not compiled itself (the network below it is): ComfyUI's TorchCompileModel drops guards on the
    transformer options, which would freeze the first window's positions into the graph.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor; ``executor.class_obj`` is the network.
    x
        Window with its concatenated conditions, ``[B, C_in, W, h, w]``; a part of its area where a
        condition applies to that part.
    timestep
        ``[B]``, or ``[B, W]`` with one timestep per latent frame.
    context
        Text embeddings ``[B, L, text]``.
    transformer_options
        ComfyUI's options of this forward; holds the `WindowView`.

    Returns
    -------
    Tensor
        ``[B, C_out, W, h, w]``; frames that were left out are zero.
    """
    kwargs.pop(FORWARD_KEY, None)
    options = {} if transformer_options is None else transformer_options
    view: WindowView = options[WINDOW_OPTION]
    network = executor.class_obj
    height, width = x.shape[-2:]
    predictions: dict[Reference, torch.Tensor] = {}
    for reference, inputs in inputs_to_run(x, view.clean, view.reference_strength).items():
        conditioning = (*_conditioning(options), reference)
        kept = _kept_context(view, network, x)
        noisy_alone = kept is not None and kept.holds(conditioning)
        skipped = view.clean if noisy_alone else 0
        noisy_timestep = timestep[:, skipped:] if timestep.ndim > 1 else timestep
        noisy = pad_to_patch_size(inputs[:, :, skipped:], network.patch_size)
        rule = _read_only(kept, conditioning, noisy_alone, noisy, network)
        frequencies = _frequencies(network, x, view.positions[skipped:], options)
        result = run_forward(
            plan_forward(network, noisy, context, options, rule),
            _network_forward,
            (network, noisy, noisy_timestep, context, clip_fea, frequencies),
            options,
            kwargs,
        )
        result = result[..., :height, :width]
        # Clean frames are replaced by the sampler's mask; any value will do.
        missing = (0, 0, 0, 0, skipped, 0)
        predictions[reference] = torch.nn.functional.pad(result, missing) if skipped else result
    return mix_predictions(predictions, view.reference_strength)


def _frequencies(
    network: Any, x: torch.Tensor, positions: tuple[int, ...], options: dict[str, Any]
) -> torch.Tensor:
    # rope_encode scales a range by scale_t; one frame has no range, so its start is scaled here.
    scale = (options.get("rope_options") or {}).get("scale_t", 1.0)
    height, width = x.shape[-2:]
    parts = [
        network.rope_encode(
            1,
            height,
            width,
            t_start=position * scale,
            device=x.device,
            dtype=torch.float32,  # bfloat16 cannot distinguish positions above 256
            transformer_options=options,
        )
        for position in positions
    ]
    return torch.cat(parts, dim=1)


def _network_forward(
    network: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None,
    frequencies: torch.Tensor,
    transformer_options: dict[str, Any],
    **kwargs: Any,
) -> torch.Tensor:
    """Call ``forward_orig``, whose arguments are in another order in some Wan models."""
    return network.forward_orig(
        x,
        timestep,
        context,
        clip_fea=clip_fea,
        freqs=frequencies,
        transformer_options=transformer_options,
        **kwargs,
    )


def _kept_context(view: WindowView, network: Any, x: torch.Tensor) -> ReadOnlyContext | None:
    """Return where this forward keeps its clean frames; ``x`` may be a part of the window's area."""
    return view.read_only and view.read_only.of_size(view.clean * frame_tokens(network, x))


@torch.compiler.disable
def _read_only(
    context: ReadOnlyContext | None,
    conditioning: tuple[Any, ...],
    noisy_alone: bool,
    x: torch.Tensor,
    network: Any,
) -> ReadOnlyForward | None:
    if context is None:
        return None
    tokens = x.shape[2] * frame_tokens(network, x)
    return ReadOnlyForward(context, conditioning, noisy_alone, tokens)


def _conditioning(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what distinguishes forwards: ComfyUI's ids of the conditions, and the replaced blocks.

    A negative condition that ComfyUI copies for the area of a positive one carries the id of that one.
    Skip-layer guidance runs the same conditions through fewer blocks.
    """
    replaced = frozenset(options.get("patches_replace", {}).get("dit", {}))
    return (*options.get("uuids", ()), tuple(options.get("cond_or_uncond", ())), replaced)


def kept_bytes(model: Any, view: WindowView, conditions: int) -> int:
    """Return the memory that a window's read-only context keeps of one clip of a batch, in bytes.

    Parameters
    ----------
    model
        The MODEL.
    conditions
        Number of conditions that are run in a step; each has keys and values of its own, and so has
        each with the reference dropped.
    """
    if view.read_only is None:
        return 0
    network = model.get_model_object("diffusion_model")
    element_size = model.model.get_dtype_inference().itemsize
    forwards = conditions * predictions_per_step(view.reference_strength)
    return forwards * view.read_only.kept_bytes(len(network.blocks), network.dim, element_size)


def count_kept_context(
    executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any
) -> Any:
    """Add what read-only context keeps to ComfyUI's estimate, as latent frames that cost as much.

    The shape feeds the estimate only; ComfyUI's own context windows change it in the same way.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor, around what loads the models of a sampling.
    model
        The MODEL.
    noise_shape
        Shape of the window, ``[B, C, W, h, w]``.
    conds
        ComfyUI's conditions.
    """
    batch, channels, frames, *size = noise_shape
    kept = batch * kwargs["model_options"]["transformer_options"][KEPT_BYTES_OPTION]
    frame = model.model.memory_required([batch, channels, 1, *size])
    shape = [batch, channels, frames + math.ceil(kept / frame), *size]
    return executor(model, shape, conds, *args, **kwargs)
