"""What happens inside the forward of a model whose self-attention runs in temporal windows.

Nothing of ComfyUI is imported here: `host.with_temporal_windows` hangs `temporal_forward` into the model
as a wrapper and `TemporalWindows` into the options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attention import TEMPORAL, TemporalForward, check_used, install

KEY = "SwiftI2V_temporal_windows"
"""Our name among wrappers and transformer options."""


@dataclass(frozen=True)
class TemporalWindows:
    """What a patched MODEL carries in its transformer options.

    Attributes
    ----------
    window_frames
        W, latent frames of a window.
    plain
        See `attention.Below`.
    """

    window_frames: int
    plain: Callable[..., torch.Tensor] | None


def tell_apart(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Let compiled code see that the model is patched.

    ComfyUI's TorchCompileModel drops guards on the transformer options, wrappers included: a network that
    first ran without ours would go on without it. Guards on arguments are kept.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor, around the model that holds the network.
    args, kwargs
        As ComfyUI passes them on; what is added to them `temporal_forward` takes out again.
    """
    return executor(*args, **kwargs, **{KEY: True})


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

    The override is put in here, at every forward, so that it is around one that another node has set
    before or after ours. Not compiled itself, see `windows.window_forward`.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor; ``executor.class_obj`` is the network.
    x
        Clip with its concatenated conditions, ``[B, C_in, T, h, w]``.
    timestep, context, clip_fea, time_dim_concat, kwargs
        As ComfyUI passes them on.
    transformer_options
        ComfyUI's options of this forward, with `TemporalWindows`.

    Returns
    -------
    Tensor
        ``[B, C_out, T, h, w]``.
    """
    kwargs.pop(KEY, None)
    options = dict(transformer_options or {})
    windows: TemporalWindows = options[KEY]
    install(options, windows.plain)
    options[TEMPORAL] = _forward(windows.window_frames, x, executor.class_obj.patch_size)
    result = executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)
    check_used(options[TEMPORAL])
    return result


def _forward(
    window_frames: int, x: torch.Tensor, patch_size: tuple[int, int, int]
) -> TemporalForward | None:
    """Return the windows of a forward; None where one window would hold the whole clip."""
    frames, height, width = x.shape[2:]
    if frames <= window_frames:
        return None
    _, patch_height, patch_width = patch_size  # one latent frame is one patch in every Wan model
    frame_tokens = -(-height // patch_height) * -(-width // patch_width)  # ComfyUI pads what is left
    return TemporalForward(window_frames, frames, frame_tokens)


def window_frames_of(model: Any) -> int | None:
    """Return W of a MODEL, None if it is not patched."""
    windows: TemporalWindows | None = model.model_options.get("transformer_options", {}).get(KEY)
    return None if windows is None else windows.window_frames
