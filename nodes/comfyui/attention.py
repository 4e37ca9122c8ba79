"""The one attention override of this pack: who attends to whom, the user's choice, the kernel.

ComfyUI passes every attention to ``transformer_options["optimized_attention_override"]``. ComfyUI's
TorchCompileModel drops guards on these options, so a compiled network never notices an override that
appears or disappears after its first run. Ours is therefore always present and always the same function;
what differs between forwards it looks up while it runs, outside compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

# ComfyUI's wrap_attn calls the override; without it ours would silently never run.
from comfy.ldm.modules.attention import attention_pytorch, wrap_attn  # noqa: F401

from ...swifti2v_core.attention import kernels
from ...swifti2v_core.attention.read_only import Attend, ReadOnlyContext
from ...swifti2v_core.attention.temporal_windows import attend_in_windows, plan_windows

PLAIN_ATTENTION = getattr(attention_pytorch, "__wrapped__", attention_pytorch)
"""ComfyUI's attention on PyTorch's kernels, as overrides receive it.

The only attention whose kernel we may choose: whoever started ComfyUI with another one chose it.
"""

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name of the transformer option."""

USERS_OVERRIDE_OPTION = "SwiftI2V_users_attention"
"""Transformer option that holds the override found below ours, or None; it then decides alone."""

READ_ONLY_OPTION = "SwiftI2V_read_only"
"""Transformer option that holds the `ReadOnlyForward` of a forward, or None."""

TEMPORAL_OPTION = "SwiftI2V_temporal"
"""Transformer option that holds the `TemporalForward` of a forward, or None."""

KNOWN_ARGUMENTS = {
    "mask",
    "attn_precision",
    "skip_reshape",
    "skip_output_reshape",
    "transformer_options",
}
"""Arguments of an attention whose kernel we choose; a call with others is left to ComfyUI."""

INTERNAL_ARGUMENTS = {"_inside_attn_wrapper"}
"""ComfyUI's mark of an attention whose override has been called."""


@dataclass
class ReadOnlyForward:
    """Read-only context during one forward of the network.

    Attributes
    ----------
    context
        Keys and values of the window's clean frames.
    conditioning
        Distinguishes this forward from others on the same window.
    noisy_alone
        Whether the clean frames are left out and their kept keys and values are reused.
    last_block
        The block whose self-attention has run; the first attention of a block is its self-attention.
    """

    context: ReadOnlyContext
    conditioning: Hashable
    noisy_alone: bool
    last_block: Hashable = None

    def attend(
        self,
        attend: Attend,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: Hashable,
        token_dim: int,
        output_dim: int,
    ) -> torch.Tensor:
        """Attend from clean frames to clean frames only; attention to the text is unchanged."""
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
        The block whose self-attention has run; the first attention of a block is its self-attention.
    """

    window_frames: int
    frames: int
    frame_tokens: int
    last_block: Hashable = None

    def attend(
        self,
        attend: Attend,
        parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        block: int,
        token_dim: int,
        output_dim: int,
    ) -> torch.Tensor:
        """Attend inside the block's windows; attention to the text is unchanged.

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


def install(options: dict[str, Any]) -> None:
    """Put our override into transformer options, around the one that is there; once is enough."""
    if options.get(OVERRIDE) is override:
        return
    options[USERS_OVERRIDE_OPTION] = options.get(OVERRIDE)
    options[OVERRIDE] = override


def install_in_every_forward(
    executor: Any,
    x: torch.Tensor,
    t: torch.Tensor,
    c_concat: torch.Tensor | None = None,
    c_crossattn: torch.Tensor | None = None,
    control: Any = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Install our override in every forward: a wrapper around ComfyUI's ``apply_model``.

    For compiled blocks, which models patched later share: the override is then present from the first run
    on, whoever samples. It is not put into the MODEL itself: another node's override would wrap ours
    there, while ours wraps that one in a forward, and both would call each other forever.
    """
    options = dict(transformer_options or {})
    install(options)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


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
    """Attend as the context, the temporal windows, the user and the GPU require.

    Parameters
    ----------
    attention
        ComfyUI's attention.
    query, key, value
        In the layout that ``kwargs`` describes.
    heads
        Number of heads.

    Returns
    -------
    Tensor
        In the layout that ``kwargs`` describes.
    """
    options = kwargs["transformer_options"]  # where ComfyUI found this override
    users = options[USERS_OVERRIDE_OPTION]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if users is not None:
            return users(attention, q, k, v, heads, *args, **kwargs)
        heads_in = bool(kwargs.get("skip_reshape"))
        plain = attention is PLAIN_ATTENTION and not args
        ours = plain and kwargs.keys() <= KNOWN_ARGUMENTS | INTERNAL_ARGUMENTS
        if not (ours and kwargs.get("mask") is None and _prefers_cudnn(q, k, heads, heads_in)):
            return attention(q, k, v, heads, *args, **kwargs)
        heads_out = bool(kwargs.get("skip_output_reshape"))
        return kernels.attend_cudnn_first(q, k, v, heads, heads_in=heads_in, heads_out=heads_out)

    # Never both: the segment samplers refuse temporal windows shorter than their own.
    forward: ReadOnlyForward | TemporalForward | None = options.get(READ_ONLY_OPTION) or options.get(
        TEMPORAL_OPTION
    )
    if forward is None:
        return attend(query, key, value)
    return forward.attend(
        attend,
        (query, key, value),
        options["block_index"],
        token_dim=2 if kwargs.get("skip_reshape") else 1,
        output_dim=2 if kwargs.get("skip_output_reshape") else 1,
    )


def check_used(forward: ReadOnlyForward | TemporalForward | None) -> None:
    """Raise RuntimeError if a forward has ended and ComfyUI never called `override`."""
    if forward is not None and forward.last_block is None:
        raise RuntimeError(
            f"This ComfyUI does not call {OVERRIDE}, which read-only context and temporal windows need; "
            "choose bidirectional context, or remove SwiftI2V Temporal Window Attention."
        )


def _prefers_cudnn(query: torch.Tensor, key: torch.Tensor, heads: int, heads_in: bool) -> bool:
    token_dim, head_dim = (2, query.shape[-1]) if heads_in else (1, query.shape[-1] // heads)
    return kernels.prefers_cudnn(
        kernels.nvidia_capability(query.device),
        query.dtype,
        head_dim,
        query.shape[token_dim],
        key.shape[token_dim],
    )
