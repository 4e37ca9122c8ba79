"""What happens inside the network's forward when it is given a window.

Nothing of ComfyUI is imported here: `host.window_guider` hangs `window_forward` into the model as a
wrapper, `host.aim_guider` puts the window and the attention override into the options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...swifti2v_core.attention.read_only import ReadOnlyContext
from ...swifti2v_core.stage_two.reference_strength import (
    Reference,
    inputs_to_run,
    mix_predictions,
    predictions_per_step,
)
from .attention import READ_ONLY, ReadOnlyForward, check_used

KEY = "SwiftI2V"
"""Our name among wrappers and transformer options."""

KEPT_BYTES = f"{KEY}_kept_bytes"
"""Transformer option: memory that read-only context will keep, which ComfyUI does not know of."""


@dataclass(frozen=True)
class WindowView:
    """What the model must know of the window it is given, carried in the transformer options.

    Attributes
    ----------
    positions
        Time position of every latent frame of the window.
    clean
        Number of leading clean frames.
    read_only
        Kept keys and values of the clean frames, or None for bidirectional context.
    reference_strength
        How much the noisy frames follow the reference channels, see `guidance.mix_predictions`.
    """

    positions: tuple[int, ...]
    clean: int
    read_only: ReadOnlyContext | None = None
    reference_strength: float = 1.0


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

    ``WanModel._forward`` numbers the frames 0, 1, 2, …; core's context windows cannot say otherwise.
    So the network's ``forward_orig`` is called with rotary frequencies put together per frame.

    A reference strength runs it twice, here and not around the sampler's guidance: all that is
    wrapped around the network, ComfyUI's or the user's, keeps seeing one forward per condition.

    Not compiled itself (the network below it is): ComfyUI's TorchCompileModel drops guards on the
    transformer options, which would freeze the first window's positions into the graph.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor; ``executor.class_obj`` is the network.
    x
        Window with its concatenated conditions, ``[B, C_in, W, h, w]``.
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
    options = {} if transformer_options is None else transformer_options
    view: WindowView = options[KEY]
    network = executor.class_obj
    predictions: dict[Reference, torch.Tensor] = {}
    # No function of its own: a compiled network must begin at forward_orig, see above.
    for reference, inputs in inputs_to_run(x, view.clean, view.reference_strength).items():
        read_only = _read_only(view, options, reference)
        skipped = view.clean if read_only is not None and read_only.noisy_alone else 0
        noisy_timestep = timestep[:, skipped:] if timestep.ndim > 1 else timestep
        options[READ_ONLY] = read_only
        result = network.forward_orig(
            inputs[:, :, skipped:],
            noisy_timestep,
            context,
            clip_fea=clip_fea,
            freqs=_frequencies(network, x, view.positions[skipped:], options),
            transformer_options=options,
            **kwargs,
        )
        check_used(read_only)
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
            dtype=torch.float32,  # bfloat16 cannot tell positions above 256 apart
            transformer_options=options,
        )
        for position in positions
    ]
    return torch.cat(parts, dim=1)


def _read_only(view: WindowView, options: dict[str, Any], reference: Reference) -> ReadOnlyForward | None:
    if view.read_only is None:
        return None
    conditioning = (*_conditioning(options), reference)
    return ReadOnlyForward(view.read_only, conditioning, view.read_only.holds(conditioning))


def _conditioning(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells forwards apart: ComfyUI's ids of the conditions, and which blocks are replaced.

    Skip-layer guidance runs the same conditions through fewer blocks.
    """
    replaced = frozenset(options.get("patches_replace", {}).get("dit", {}))
    return (*options.get("uuids", ()), replaced)


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
    kept = batch * kwargs["model_options"]["transformer_options"][KEPT_BYTES]
    frame = model.model.memory_required([batch, channels, 1, *size])
    shape = [batch, channels, frames + math.ceil(kept / frame), *size]
    return executor(model, shape, conds, *args, **kwargs)
