"""The one attention override of this pack: who attends to whom, the user's choice, the kernel.

ComfyUI passes every attention to ``transformer_options["optimized_attention_override"]``. Ours is put there
inside a forward, after whatever other nodes put there before each step, and only where it has something to
do; ``forward`` holds the functions that do so. What differs between forwards is looked up in the
`RunningForward` while the network runs, never in compiled code: ComfyUI's TorchCompileModel drops guards on
the transformer options, so what a compiled network read there in its first run, it keeps.

Compiled code calls `attend_in_graph`, an operator that torch.compile does not look into, so that a block
stays one graph.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

# ComfyUI's wrap_attn calls the override; without it ours would silently never run.
from comfy.ldm.modules.attention import attention_pytorch, wrap_attn  # noqa: F401

from ...swifti2v_core.attention import kernels
from .attention_rules import Parts, Rule

Attention = Callable[..., torch.Tensor]
"""An attention as ComfyUI's overrides receive it."""

Options = dict[str, Any]
"""Transformer options."""

PLAIN_ATTENTION = getattr(attention_pytorch, "__wrapped__", attention_pytorch)
"""ComfyUI's attention on PyTorch's kernels, as overrides receive it.

The only attention whose kernel we may choose: whoever started ComfyUI with another one chose it.
"""

OVERRIDE = "optimized_attention_override"
"""ComfyUI's name of the transformer option."""

ONE_GRAPH_OPTION = "SwiftI2V_one_graph"
"""Transformer option that is set while the whole network is traced into one graph.

Block indices are then constants of the graph. Elsewhere a compiled block is shared by all blocks.
"""

OPERATOR = f"swifti2v::attend_{zlib.crc32(__name__.encode()):08x}"
"""Name of `attend_in_graph`, which each copy of this pack in a process has of its own, like its calls."""

UNKNOWN_BLOCK = -1
"""Index given to `attend_in_graph` by a graph that all blocks share."""

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


@dataclass(frozen=True)
class Call:
    """Everything an attention is called with but tensors and transformer options.

    Attributes
    ----------
    attention
        ComfyUI's attention.
    heads
        Number of heads.
    args
        Further arguments by place.
    settings
        Arguments by name.
    """

    attention: Attention
    heads: int
    args: tuple[Any, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def token_dim(self) -> int:
        """Token axis of query, key and value."""
        return 2 if dict(self.settings).get("skip_reshape") else 1

    @property
    def output_dim(self) -> int:
        """Token axis of the result."""
        return 2 if dict(self.settings).get("skip_output_reshape") else 1

    @property
    def mask(self) -> torch.Tensor | None:
        """The mask, however it was passed."""
        return self.args[0] if self.args else dict(self.settings).get("mask")

    def run(self, attention: Attention, parts: Parts, options: Options, *before: Any) -> torch.Tensor:
        """Call an attention, or an override with its attention ``before`` the tensors."""
        return attention(
            *before, *parts, self.heads, *self.args, **dict(self.settings), transformer_options=options
        )


@dataclass
class RunningForward:
    """A forward of the network in which our override is installed.

    Attributes
    ----------
    options
        Its transformer options; the network writes the running block's index here.
    network
        The Wan network.
    rule
        Who attends to whom, or None for all to all.
    users
        The override found below ours, or None; it then decides alone.
    text_tokens
        Length of the text, or None where it is unknown.
    outer
        The forward below ``users``, in which ours was installed by a wrapper around this one, or None.
    last_block
        The block whose self-attention has run, or None before the first.
    """

    options: Options
    network: Any
    rule: Rule | None = None
    users: Attention | None = None
    text_tokens: int | None = None
    outer: RunningForward | None = None
    last_block: int | None = None

    def attend(self, call: Call, parts: Parts, options: Options) -> torch.Tensor:
        """Attend as the rule, the user, the checkpoint and the GPU require.

        Raises
        ------
        ValueError, RuntimeError
            If the rule cannot be kept.
        """
        block: int | None = options.get("block_index")
        query, key = (part.shape[call.token_dim] for part in parts[:2])
        # The text may be as long as the sequence, and VACE's control blocks repeat the index of a block.
        own = query == key and (block is None or block != self.last_block)

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return self._attend_below(call, (query, key, value), options, own)

        seen, self.last_block = block == self.last_block, block
        if self.rule is None:
            return attend(*parts)
        if block is None:
            raise RuntimeError(
                f"This ComfyUI passes no block_index to {OVERRIDE}; choose bidirectional context, or "
                "remove SwiftI2V Temporal Window Attention."
            )
        if seen:
            return attend(*parts)
        self._check_composition(call, block, key, own)
        return self.rule.attend(attend, parts, block, call.token_dim, call.output_dim)

    def _check_composition(self, call: Call, block: int, key_tokens: int, own: bool) -> None:
        if not own and key_tokens == self.text_tokens:
            raise RuntimeError(
                f"Another node computes the self-attention of block {block} itself, which read-only "
                "context and temporal windows need to see; remove that node, choose bidirectional context, "
                "or remove SwiftI2V Temporal Window Attention."
            )
        if call.mask is not None:
            raise ValueError(
                "The model masks its self-attention, which read-only context and temporal windows divide; "
                "remove the node that adds the mask, choose bidirectional context, or remove SwiftI2V "
                "Temporal Window Attention."
            )

    def _attend_below(self, call: Call, parts: Parts, options: Options, own: bool) -> torch.Tensor:
        """Attend with what would attend without ours."""
        # An override that an inner wrapper hung around ours calls ours again, for the forward below it.
        token = _running.set(self.outer)
        try:
            if self.users is not None:
                return call.run(self.users, parts, options, call.attention)
            preferred = preferred_attention(self.network, options.get("block_index"), own)
            if preferred is not None:
                return call.run(preferred, parts, options)
            return _attend_fastest(call, parts, options)
        finally:
            _running.reset(token)


_running: ContextVar[RunningForward | None] = ContextVar("SwiftI2V_running_forward", default=None)
"""The forward that runs in this thread; ComfyUI may run one per GPU, each in a thread."""

_calls: list[Call] = []
"""Calls that compiled code makes, by the number it keeps; a handful per session."""


@torch.compiler.disable
def set_running(forward: RunningForward | None) -> None:
    """Make a forward the one that runs in this thread."""
    _running.set(forward)


@torch.compiler.disable
def running() -> RunningForward | None:
    """Return the forward that runs in this thread, or None."""
    return _running.get()


def override(
    attention: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """Attend as the rule, the user, the checkpoint and the GPU require.

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
    options = kwargs.pop("transformer_options")  # where ComfyUI found this override
    settings = tuple(kwargs.items())
    tensors = any(isinstance(given, torch.Tensor) for given in (*args, *kwargs.values()))
    if tensors or not torch.compiler.is_compiling():
        return _attend_now(Call(attention, heads, args, settings), (query, key, value), options)
    block = options.get("block_index", UNKNOWN_BLOCK) if ONE_GRAPH_OPTION in options else UNKNOWN_BLOCK
    return attend_in_graph(query, key, value, _number_of(attention, heads, args, settings), block)


@torch.compiler.disable
def _attend_now(call: Call, parts: Parts, options: Options) -> torch.Tensor:
    forward = _running.get()
    if forward is None:  # the options have outlived their forward
        return call.run(call.attention, parts, options)
    return forward.attend(call, parts, options)


@torch.compiler.assume_constant_result
def _number_of(
    attention: Attention, heads: int, args: tuple[Any, ...], settings: tuple[tuple[str, Any], ...]
) -> int:
    """Return the number by which compiled code finds a call."""
    call = Call(attention, heads, args, settings)
    if call not in _calls:
        _calls.append(call)
    return _calls.index(call)


@torch.library.custom_op(
    OPERATOR,
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, int number, SymInt block) -> Tensor",
)
def attend_in_graph(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, number: int, block: int
) -> torch.Tensor:
    """Attend from compiled code, as `override` does without it.

    Parameters
    ----------
    query, key, value
        In the layout of the call.
    number
        Finds the `Call` in the table.
    block
        Index of the block, or `UNKNOWN_BLOCK` if the network has written it into the running options.
    """
    call, forward = _calls[number], _running.get()
    # A graph that was meant to hold the whole network may have been cut into blocks after all.
    options = {"block_index": block} if block != UNKNOWN_BLOCK else {}
    options |= {} if forward is None else forward.options
    result = _attend_now(call, (query, key, value), options).to(query.dtype).contiguous()
    # An operator must not return what it was given, as an override may.
    given = {part.untyped_storage().data_ptr() for part in (query, key, value)}
    return result.clone() if result.untyped_storage().data_ptr() in given else result


@attend_in_graph.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, number: int, block: int) -> torch.Tensor:
    call = _calls[number]
    if call.token_dim == 1:
        batch, tokens, channels = query.shape[0], query.shape[1], value.shape[2] // call.heads
    else:
        batch, tokens, channels = query.shape[0], query.shape[2], value.shape[3]
    if call.output_dim == 1:
        return query.new_empty(batch, tokens, call.heads * channels)
    return query.new_empty(batch, call.heads, tokens, channels)


def preferred_attention(network: Any, block: int | None, own: bool) -> Attention | None:
    """Return the attention that a quantized checkpoint asks for in a layer, or None.

    ComfyUI itself forgets it where there is an override, so it is read from the layer.

    Parameters
    ----------
    network
        The Wan network.
    block
        Index of the block, or None.
    own
        Whether the block's self-attention is meant, not its attention to the text.
    """
    if block is None:
        return None
    layer = getattr(network.blocks[block], "self_attn" if own else "cross_attn", None)
    return getattr(getattr(layer, "comfy_attention", None), "function", None)


def prefers_cudnn(
    device: torch.device, dtype: torch.dtype, head_dim: int, query_tokens: int, key_tokens: int
) -> bool:
    """Return whether cuDNN's kernel is known to be the faster one, see `kernels.prefers_cudnn`."""
    capability = kernels.nvidia_capability(device)
    return kernels.prefers_cudnn(capability, dtype, head_dim, query_tokens, key_tokens)


def _attend_fastest(call: Call, parts: Parts, options: Options) -> torch.Tensor:
    """Attend with ComfyUI's attention, on cuDNN's kernel where we may choose and it is faster."""
    settings, heads_in = dict(call.settings), call.token_dim == 2
    plain = call.attention is PLAIN_ATTENTION and not call.args and call.mask is None
    query, key, _ = parts
    head_dim = query.shape[-1] if heads_in else query.shape[-1] // call.heads
    lengths = (query.shape[call.token_dim], key.shape[call.token_dim])
    ours = plain and settings.keys() <= KNOWN_ARGUMENTS | INTERNAL_ARGUMENTS
    if not (ours and prefers_cudnn(query.device, query.dtype, head_dim, *lengths)):
        return call.run(call.attention, parts, options)
    heads_out = call.output_dim == 2
    return kernels.attend_cudnn_first(*parts, call.heads, heads_in=heads_in, heads_out=heads_out)
