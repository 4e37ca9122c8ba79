"""The one attention override of this pack: who attends to whom, the user's choice, the kernel.

ComfyUI hands every attention to ``transformer_options["optimized_attention_override"]``. ComfyUI's
TorchCompileModel drops guards on these options, so a compiled network keeps for ever whether its first
run found an override there. Ours is therefore always there and always the same function; what may
differ from one forward to the next it looks up while it runs, never compiled.

Nothing of ComfyUI is imported here: `host.aim_guider`, `host.motion_guider` and `host.with_compiled_blocks`
hang the override in, and so does `temporal.temporal_forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...swifti2v_core.attention import kernels
from ...swifti2v_core.attention.read_only import Attend, ReadOnlyContext
from ...swifti2v_core.attention.temporal_windows import attend_in_windows, plan_windows
from . import internals

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name of the transformer option."""

BELOW = "SwiftI2V_attention_below"
"""Transformer option that holds `Below`."""

READ_ONLY = "SwiftI2V_read_only"
"""Transformer option that holds the `ReadOnlyForward` of a forward, or None."""

TEMPORAL = "SwiftI2V_temporal"
"""Transformer option that holds the `TemporalForward` of a forward, or None."""

UNDERSTOOD = {"mask", "attn_precision", "skip_reshape", "skip_output_reshape", "transformer_options"}
"""What ComfyUI may ask of an attention whose kernel we choose; anything else is left to ComfyUI."""

INTERNAL = {"_inside_attn_wrapper"}
"""ComfyUI's mark that it has called the override already."""


@dataclass(frozen=True)
class Below:
    """What our override runs around.

    Attributes
    ----------
    users
        Override that was there before, or None; it decides alone.
    plain
        ComfyUI's attention on PyTorch's kernels, the only one whose kernel is ours to choose: with
        another one the user started ComfyUI on purpose. None where it is not known.
    """

    users: Callable[..., torch.Tensor] | None
    plain: Callable[..., torch.Tensor] | None


@dataclass
class ReadOnlyForward:
    """Read-only context during one forward of the network.

    Attributes
    ----------
    context
        Keys and values of the window's clean frames.
    conditioning
        What tells this forward from others on the same window.
    noisy_alone
        Whether the clean frames were left out, their keys and values being kept.
    last_block
        The block whose self-attention has run. Of a block's attentions the first is self-attention.
    """

    context: ReadOnlyContext
    conditioning: Hashable
    noisy_alone: bool
    last_block: Hashable = None
    feature: ClassVar[internals.Feature] = internals.READ_ONLY

    def attend(
        self,
        attend: Attend,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: Hashable,
        token_dim: int,
        output_dim: int,
    ) -> torch.Tensor:
        """Attend from clean frames to clean frames only; attention to the text stays as it is."""
        if block == self.last_block:
            return attend(*parts)
        self.last_block = block
        slot = (self.conditioning, block)
        if self.noisy_alone:
            return self.context.attend_noisy(attend, *parts, slot=slot, token_dim=token_dim)
        return self.context.attend_window(
            attend, *parts, slot=slot, token_dim=token_dim, output_dim=output_dim
        )


@dataclass
class TemporalForward:
    """Temporal windows during one forward of the network.

    Attributes
    ----------
    window_frames
        W, latent frames of a window.
    frames
        Latent frames of the clip.
    frame_tokens
        Tokens of a latent frame.
    last_block
        The block whose self-attention has run. Of a block's attentions the first is self-attention.
    """

    window_frames: int
    frames: int
    frame_tokens: int
    last_block: Hashable = None
    feature: ClassVar[internals.Feature] = internals.TEMPORAL_WINDOWS

    def attend(
        self,
        attend: Attend,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: int,
        token_dim: int,
        output_dim: int,
    ) -> torch.Tensor:
        """Attend inside the block's windows; attention to the text stays as it is.

        Raises
        ------
        ValueError
            If the sequence holds more than the clip's latent frames.
        """
        if block == self.last_block:
            return attend(*parts)
        self.last_block = block
        expected = self.frames * self.frame_tokens
        query, key, _ = (part.shape[token_dim] for part in parts)
        if (query, key) != (expected, expected):
            raise ValueError(
                f"The model attends from {query} to {key} tokens, but {self.frames} latent frames of "
                f"{self.frame_tokens} tokens are {expected}: a reference was added "
                "that has no place in temporal windows; remove the node that adds it, or SwiftI2V Temporal "
                "Window Attention."
            )
        windows = plan_windows(self.frames, self.window_frames, block)
        return attend_in_windows(attend, *parts, windows, token_dim=token_dim, output_dim=output_dim)


def install(options: dict[str, Any], plain: Callable[..., torch.Tensor] | None) -> None:
    """Put our override into transformer options, around the one that is there; once is enough."""
    if options.get(OVERRIDE) is override:
        return
    options[BELOW] = Below(options.get(OVERRIDE), plain)
    options[OVERRIDE] = override


def installer(plain: Callable[..., torch.Tensor] | None) -> Callable[..., Any]:
    """Return a wrapper around ComfyUI's ``apply_model`` that installs our override in every forward.

    For compiled blocks, which models patched later share: the override is then there from the first run on,
    whoever samples. It is not put into the MODEL itself, where another node's override would find ours and
    run around it, while ours runs around that one: for ever.

    Parameters
    ----------
    plain
        See `Below`.
    """

    def apply_model(
        executor: Any,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        options = dict(transformer_options or {})
        install(options, plain)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return apply_model


@torch.compiler.disable
def override(
    attention: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Attend as the context, the temporal windows, the user and the card ask for.

    Parameters
    ----------
    attention
        The attention that ComfyUI would run.
    query, key, value
        In the layout that ``kwargs`` tells.
    heads
        Number of heads.

    Returns
    -------
    Tensor
        In the layout that ``kwargs`` tells.
    """
    options = kwargs["transformer_options"]  # where ComfyUI found this override
    below: Below = options[BELOW]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if below.users is not None:
            return below.users(attention, q, k, v, heads, *args, **kwargs)
        heads_in = bool(kwargs.get("skip_reshape"))
        ours = attention is below.plain and not args and kwargs.keys() <= UNDERSTOOD | INTERNAL
        if not (ours and kwargs.get("mask") is None and _prefers_cudnn(q, k, heads, heads_in)):
            return attention(q, k, v, heads, *args, **kwargs)
        heads_out = bool(kwargs.get("skip_output_reshape"))
        return kernels.attend_cudnn_first(q, k, v, heads, heads_in=heads_in, heads_out=heads_out)

    # Never both: the segment samplers refuse temporal windows shorter than their own.
    arranged: ReadOnlyForward | TemporalForward | None = options.get(READ_ONLY) or options.get(TEMPORAL)
    if arranged is None:
        return attend(query, key, value)
    if "block_index" not in options:
        raise RuntimeError(internals.sentence(["block_index in its transformer options"], arranged.feature))
    return arranged.attend(
        attend,
        (query, key, value),
        options["block_index"],
        token_dim=2 if kwargs.get("skip_reshape") else 1,
        output_dim=2 if kwargs.get("skip_output_reshape") else 1,
    )


def check_used(arranged: ReadOnlyForward | TemporalForward | None) -> None:
    """Raise RuntimeError if a forward has ended and ComfyUI never asked `override` how to attend."""
    if arranged is not None and arranged.last_block is None:
        raise RuntimeError(internals.sentence([f"call of {OVERRIDE}"], arranged.feature))


def _prefers_cudnn(query: torch.Tensor, key: torch.Tensor, heads: int, heads_in: bool) -> bool:
    token_dim, head_dim = (2, query.shape[-1]) if heads_in else (1, query.shape[-1] // heads)
    return kernels.prefers_cudnn(
        kernels.nvidia_capability(query.device),
        query.dtype,
        head_dim,
        query.shape[token_dim],
        key.shape[token_dim],
    )
