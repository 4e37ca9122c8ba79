"""What happens inside the network's forward when it is given a window.

Nothing of ComfyUI is imported here: `host.window_guider` hangs `window_forward` into the model as a
wrapper, `host.aim_guider` hangs in the attention override.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..swifti2v_core.attention import ReadOnlyContext

KEY = "SwiftI2V"
"""Our name among wrappers and transformer options."""

NOISY_ALONE = f"{KEY}_noisy_alone"
"""Transformer option of one forward: the clean frames are left out, their keys and values kept."""

LAST_BLOCK = f"{KEY}_last_block"
"""Transformer option of one forward: the block whose self-attention has run."""


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
    """

    positions: tuple[int, ...]
    clean: int
    read_only: ReadOnlyContext | None = None


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
    kept = view.read_only is not None and view.read_only.holds(_conditioning(options))
    skipped = view.clean if kept else 0
    noisy_timestep = timestep[:, skipped:] if timestep.ndim > 1 else timestep
    options[NOISY_ALONE] = kept
    result = network.forward_orig(
        x[:, :, skipped:],
        noisy_timestep,
        context,
        clip_fea=clip_fea,
        freqs=_frequencies(network, x, view.positions[skipped:], options),
        transformer_options=options,
        **kwargs,
    )
    # Clean frames are replaced by the sampler's mask; any value will do.
    missing = (0, 0, 0, 0, skipped, 0)
    return torch.nn.functional.pad(result, missing) if skipped else result


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


def _conditioning(options: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells forwards apart: ComfyUI's ids of the conditions, and which blocks are replaced.

    Skip-layer guidance runs the same conditions through fewer blocks.
    """
    replaced = frozenset(options.get("patches_replace", {}).get("dit", {}))
    return (*options.get("uuids", ()), replaced)


def read_only_override(previous: Callable[..., torch.Tensor] | None) -> Callable[..., Any]:
    """Return an attention override for read-only context, around the one that was there before."""

    @torch.compiler.disable(recursive=False)
    def override(
        attention: Callable[..., torch.Tensor],
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        heads: int,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            if previous is None:
                return attention(q, k, v, heads, *args, **kwargs)
            return previous(attention, q, k, v, heads, *args, **kwargs)

        options = kwargs.get("transformer_options") or {}
        view = options.get(KEY)
        block = options.get("block_index")
        # Of a block's attentions the first is self-attention. ComfyUI copies the options for every
        # forward, so the mark vanishes with it.
        if view is None or options.get(LAST_BLOCK) == block:
            return attend(query, key, value)
        options[LAST_BLOCK] = block
        token_dim = 2 if kwargs.get("skip_reshape") else 1
        output_dim = 2 if kwargs.get("skip_output_reshape") else 1
        slot = (_conditioning(options), block)
        if options.get(NOISY_ALONE):
            return view.read_only.attend_noisy(attend, query, key, value, slot=slot, token_dim=token_dim)
        return view.read_only.attend_window(
            attend, query, key, value, slot=slot, token_dim=token_dim, output_dim=output_dim
        )

    return override
