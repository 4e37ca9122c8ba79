"""A MODEL whose self-attention runs in temporal windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .attention_rules import TemporalForward
from .forward import add_forward, attend_forward, frame_tokens

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
    add_forward(clone, PATCH_OPTION, temporal_forward)
    return clone


def window_frames_of(model: Any) -> int | None:
    """Return W of a MODEL, None if it is not patched."""
    patch: TemporalPatch | None = model.model_options.get("transformer_options", {}).get(PATCH_OPTION)
    return None if patch is None else patch.window_frames


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

    Not compiled itself, see `forward.attend_forward`.

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
    options = {} if transformer_options is None else transformer_options
    rule = _plan_windows(options[PATCH_OPTION].window_frames, x, executor.class_obj)
    return attend_forward(
        executor, x, timestep, context, clip_fea, time_dim_concat, options, rule=rule, **kwargs
    )


@torch.compiler.disable
def _plan_windows(window_frames: int, x: torch.Tensor, network: Any) -> TemporalForward | None:
    """Return the windows of a forward; None where one window would hold the whole clip."""
    frames = x.shape[2]
    if frames <= window_frames:
        return None
    return TemporalForward(window_frames, frames, frame_tokens(network, x))
