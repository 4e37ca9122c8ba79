"""A MODEL whose self-attention runs in temporal windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from .attention import TEMPORAL_OPTION, TemporalForward, check_used, install

PATCH_OPTION = "SwiftI2V_temporal_windows"
"""Our name among wrappers and transformer options."""


@dataclass(frozen=True)
class TemporalPatch:
    """What a patched MODEL carries in its transformer options.

    Attributes
    ----------
    window_frames
        W, latent frames of a window.
    """

    window_frames: int


def with_temporal_windows(model: Any, window_frames: int) -> Any:
    """Return a clone of ``model`` whose self-attention runs inside windows of ``window_frames``."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[PATCH_OPTION] = TemporalPatch(window_frames)
    for place, wrapper in (
        (WrappersMP.DIFFUSION_MODEL, temporal_forward),
        (WrappersMP.APPLY_MODEL, mark_patched_forward),
    ):
        clone.remove_wrappers_with_key(place, PATCH_OPTION)  # of a model that was patched before
        clone.add_wrapper_with_key(place, PATCH_OPTION, wrapper)
    return clone


def window_frames_of(model: Any) -> int | None:
    """Return W of a MODEL, None if it is not patched."""
    patch: TemporalPatch | None = model.model_options.get("transformer_options", {}).get(PATCH_OPTION)
    return None if patch is None else patch.window_frames


def mark_patched_forward(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Show compiled code that the model is patched.

    ComfyUI's TorchCompileModel drops guards on the transformer options, wrappers included: a network that
    first ran without ours would keep running without it. Guards on arguments are kept.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor, around the model that holds the network.
    args, kwargs
        As ComfyUI passes them on; `temporal_forward` removes the argument added here.
    """
    return executor(*args, **kwargs, **{PATCH_OPTION: True})


@torch.compiler.disable(recursive=False)
def temporal_forward(
    executor: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None = None,
    time_dim_concat: torch.Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Run the Wan network with its self-attention inside temporal windows.

    The override is installed here, in every forward, so that it wraps one that another node has set
    before or after ours. Not compiled itself, see `window_model.window_forward`.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor; ``executor.class_obj`` is the network.
    x
        Clip with its concatenated conditions, ``[B, C_in, T, h, w]``.
    timestep, context, clip_fea, time_dim_concat, kwargs
        As ComfyUI passes them on.
    transformer_options
        ComfyUI's options of this forward, with a `TemporalPatch`.

    Returns
    -------
    Tensor
        ``[B, C_out, T, h, w]``.
    """
    kwargs.pop(PATCH_OPTION, None)
    options = dict(transformer_options or {})
    patch: TemporalPatch = options[PATCH_OPTION]
    install(options)
    forward = _plan_forward(patch.window_frames, x, executor.class_obj.patch_size)
    options[TEMPORAL_OPTION] = forward
    result = executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    check_used(forward)
    return result


def _plan_forward(
    window_frames: int, x: torch.Tensor, patch_size: tuple[int, int, int]
) -> TemporalForward | None:
    """Return the windows of a forward; None where one window would hold the whole clip."""
    frames, height, width = x.shape[2:]
    if frames <= window_frames:
        return None
    _, patch_height, patch_width = patch_size  # one latent frame is one patch in every Wan model
    frame_tokens = -(-height // patch_height) * -(-width // patch_width)  # ComfyUI pads what is left
    return TemporalForward(window_frames, frames, frame_tokens)
