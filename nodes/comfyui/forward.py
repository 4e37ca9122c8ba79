"""Forwards of the network with our attention override in them, where it has something to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

from .attention import (
    ONE_GRAPH_OPTION,
    OVERRIDE,
    RunningForward,
    override,
    prefers_cudnn,
    running,
    set_running,
)
from .attention_rules import Rule

FORWARD_KEY = "SwiftI2V_forward"
"""Our name among wrappers, and of the argument that `mark_forward` adds."""

COMPILE_KEY = "torch.compile"
"""ComfyUI's name of the wrapper that compiles a network."""


def with_fastest_attention(model: Any) -> Any:
    """Return a clone of ``model`` whose forwards use the attention kernel that suits the GPU."""
    clone = model.clone()
    add_forward(clone, FORWARD_KEY, attend_forward)
    return clone


def add_forward(model: Any, key: str, forward: Callable[..., torch.Tensor]) -> None:
    """Add a wrapper around the network's forward to a MODEL, in place of one with the same key.

    Parameters
    ----------
    model
        The MODEL, changed in place.
    key
        Our name among wrappers.
    forward
        As `attend_forward`; must remove the argument `FORWARD_KEY`.
    """
    for place, wrapper in ((WrappersMP.DIFFUSION_MODEL, forward), (WrappersMP.APPLY_MODEL, mark_forward)):
        model.remove_wrappers_with_key(place, key)
        model.add_wrapper_with_key(place, key, wrapper)


def mark_forward(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Show compiled code that the model is patched.

    ComfyUI's TorchCompileModel drops guards on the transformer options, wrappers included: a network that
    first ran without ours would keep running without it. Guards on arguments are kept.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor, around the model that holds the network.
    args, kwargs
        As ComfyUI passes them on.
    """
    return executor(*args, **(kwargs | {FORWARD_KEY: True}))


@torch.compiler.disable(recursive=False)
def attend_forward(
    executor: Any,
    x: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    clip_fea: torch.Tensor | None = None,
    time_dim_concat: torch.Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
    *,
    rule: Rule | None = None,
    always: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """Run the Wan network with our override where it has something to do.

    Not compiled itself (the network below it is): ComfyUI's TorchCompileModel drops guards on the
    transformer options, which would freeze the first forward's rule into the graph.

    Parameters
    ----------
    executor
        ComfyUI's wrapper executor; ``executor.class_obj`` is the network.
    x
        Clip with its concatenated conditions, ``[B, C_in, T, h, w]``.
    timestep, context, clip_fea, time_dim_concat, kwargs
        As ComfyUI passes them on.
    transformer_options
        ComfyUI's options of this forward.
    rule, always
        See `plan_forward`.

    Returns
    -------
    Tensor
        ``[B, C_out, T, h, w]``.
    """
    kwargs.pop(FORWARD_KEY, None)
    options = {} if transformer_options is None else transformer_options
    planned = plan_forward(executor.class_obj, x, context, options, rule, always=always)
    args = (x, timestep, context, clip_fea, time_dim_concat)
    return run_forward(planned, executor, args, options, kwargs)


@torch.compiler.disable
def plan_forward(
    network: Any,
    x: torch.Tensor,
    context: torch.Tensor,
    options: dict[str, Any],
    rule: Rule | None,
    *,
    always: bool = False,
) -> RunningForward | None:
    """Return the forward in which our override is installed, or None where it has nothing to do.

    Parameters
    ----------
    network
        The Wan network.
    x
        What it runs on, ``[B, C_in, T, h, w]``.
    context
        Text embeddings ``[B, L, text]``.
    options
        ComfyUI's options of this forward, which stay as they are.
    rule
        Who attends to whom, or None for all to all.
    always
        Whether ours is installed in any case. For compiled code without guards on the options, which
        never notices an override that appears or disappears after its first run.
    """
    users, outer = options.get(OVERRIDE), running()
    if users is override:  # installed by a wrapper around this one
        users, outer, around = None, None, outer
        if around is not None:
            if rule is None:
                return None
            users, outer = around.users, around.outer
    if rule is None and not always and not _has_work(network, x, options):
        return None
    # The network writes the index of each block; what is there is another forward's.
    own = {key: value for key, value in options.items() if key not in ("block_index", ONE_GRAPH_OPTION)}
    own[OVERRIDE] = override
    return RunningForward(own, network, rule, users, context.shape[1], outer)


@torch.compiler.disable(recursive=False)
def run_forward(
    planned: RunningForward | None,
    network_forward: Callable[..., torch.Tensor],
    args: tuple[Any, ...],
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Run the network as planned.

    Parameters
    ----------
    planned
        See `plan_forward`.
    network_forward
        Called with ``args``, the options of the forward and ``kwargs``.

    Raises
    ------
    RuntimeError
        If the network has a rule to keep and never asked for it.
    """
    if planned is None:
        if options.get(OVERRIDE) is not override:
            return _run_plain(network_forward, args, options, kwargs)
        options.pop("block_index", None)  # of an earlier run in the forward around this one
        return _run_overridden(network_forward, args, options, kwargs)
    around = running()
    set_running(planned)
    try:
        result = _run_overridden(network_forward, args, planned.options, kwargs)
    finally:
        set_running(around)
    if planned.rule is not None and planned.last_block is None:
        raise RuntimeError(
            f"This ComfyUI does not call {OVERRIDE}, or another node has replaced the network's "
            "attention; read-only context and temporal windows need it: choose bidirectional context, or "
            "remove SwiftI2V Temporal Window Attention."
        )
    return result


# Here torch.compile enters: two functions, because it distinguishes functions whatever guards it drops.
# It drops those on whatever is named transformer_options.


def _run_plain(
    network_forward: Callable[..., torch.Tensor],
    args: tuple[Any, ...],
    transformer_options: dict[str, Any],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    return network_forward(*args, transformer_options, **kwargs)


def _run_overridden(
    network_forward: Callable[..., torch.Tensor],
    args: tuple[Any, ...],
    transformer_options: dict[str, Any],
    kwargs: dict[str, Any],
) -> torch.Tensor:
    if torch.compiler.is_compiling():
        transformer_options[ONE_GRAPH_OPTION] = True
    return network_forward(*args, transformer_options, **kwargs)


def frame_tokens(network: Any, x: torch.Tensor) -> int:
    """Return how many tokens a latent frame becomes; one latent frame is one patch in every Wan model."""
    _, patch_height, patch_width = network.patch_size
    height, width = x.shape[-2:]
    return -(-height // patch_height) * -(-width // patch_width)  # ComfyUI pads what is left


def _has_work(network: Any, x: torch.Tensor, options: dict[str, Any]) -> bool:
    """Return whether our override changes anything where all attend to all."""
    if options.get(OVERRIDE) not in (
        None,
        override,
    ):  # decides alone, and looked up here it may change between runs of compiled code
        return _is_compiled(network, options)
    tokens = x.shape[2] * frame_tokens(network, x)
    return prefers_cudnn(x.device, x.dtype, network.dim // network.num_heads, tokens, tokens)


def _is_compiled(network: Any, options: dict[str, Any]) -> bool:
    wrapped = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    return COMPILE_KEY in wrapped or any(hasattr(block, "_orig_mod") for block in network.blocks)
