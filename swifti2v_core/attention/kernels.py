"""Which of PyTorch's attention kernels computes long self-attention.

PyTorch prefers its flash attention. On Hopper cuDNN's is nearly twice as fast (one H200, bf16, heads of
128 channels, 17,600 tokens: 620 instead of 350 TFLOP/s), and attention is more than half of a window's
time. Elsewhere nothing has been measured, so nothing is chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.cuda import get_device_capability

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    ORDER = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    sdpa_kernel(ORDER, set_priority=True)  # enters nothing, only shows that it takes an order
except (ImportError, AttributeError, TypeError):
    ORDER = []  # a PyTorch that cannot prefer one kernel and fall back to another

HOPPER = 9
"""Major compute capability of the cards where cuDNN has been measured."""

LONG = 4096
"""Tokens from which self-attention is long enough for the kernel to matter."""


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA card, None for any other device.

    AMD's cards call themselves CUDA devices, too, and count their capabilities differently.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return get_device_capability(device)


def prefers_cudnn(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    head_dim: int,
    query_tokens: int,
    key_tokens: int,
) -> bool:
    """Tell whether cuDNN's kernel is known to be the faster one.

    Parameters
    ----------
    capability
        See `nvidia_capability`.
    dtype
        Number format of query, key and value.
    head_dim
        Channels of one head.
    query_tokens, key_tokens
        Lengths of the two sequences.
    """
    return (
        bool(ORDER)
        and capability is not None
        and capability[0] == HOPPER
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim <= 128
        and min(query_tokens, key_tokens) >= LONG
    )


def attend_cudnn_first(
    query: Tensor, key: Tensor, value: Tensor, heads: int, *, heads_in: bool, heads_out: bool
) -> Tensor:
    """Attend with cuDNN's kernel where it can, with the next of `ORDER` where it cannot.

    Parameters
    ----------
    query, key, value
        ``[B, heads, tokens, channels]``, or ``[B, tokens, heads * channels]`` unless ``heads_in``.
    heads
        Number of heads.
    heads_in, heads_out
        Whether heads have an axis of their own in what is given and in what is returned.

    Returns
    -------
    Tensor
        In the layout of ``query`` that ``heads_out`` asks for.
    """
    if not heads_in:
        query, key, value = (
            part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value)
        )
    with sdpa_kernel(ORDER, set_priority=True):
        result = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return result if heads_out else result.transpose(1, 2).flatten(2)
