"""Choice of PyTorch's attention kernel for long self-attention.

PyTorch prefers flash attention. On Hopper, cuDNN attention is nearly twice as fast (one H200, bf16, heads
of 128 channels, 17,600 tokens: 620 instead of 350 TFLOP/s), and attention is more than half of a window's
time. Other cards have not been measured, so PyTorch's choice stands there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.cuda import get_device_capability

try:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    KERNEL_ORDER = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    sdpa_kernel(
        KERNEL_ORDER, set_priority=True
    )  # never entered: only tests whether priorities are supported
except (ImportError, AttributeError, TypeError):
    KERNEL_ORDER = []  # this PyTorch cannot prefer one kernel and fall back to others

HOPPER_MAJOR = 9
"""Major compute capability of the cards on which cuDNN was measured."""

MIN_TOKENS = 4096
"""Tokens from which the choice of kernel matters."""


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA card, None for any other device.

    AMD cards are CUDA devices in PyTorch, too, but number their capabilities differently.
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
    """Return whether cuDNN's kernel is known to be faster.

    Parameters
    ----------
    capability
        See `nvidia_capability`.
    dtype
        Type of query, key and value.
    head_dim
        Channels of one head.
    query_tokens, key_tokens
        Lengths of the two sequences.
    """
    return (
        bool(KERNEL_ORDER)
        and capability is not None
        and capability[0] == HOPPER_MAJOR
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim <= 128
        and min(query_tokens, key_tokens) >= MIN_TOKENS
    )


def attend_cudnn_first(
    query: Tensor, key: Tensor, value: Tensor, heads: int, *, heads_in: bool, heads_out: bool
) -> Tensor:
    """Attend with cuDNN's kernel, or the next one of `KERNEL_ORDER` that supports the inputs.

    Parameters
    ----------
    query, key, value
        ``[B, heads, tokens, channels]``, or ``[B, tokens, heads * channels]`` unless ``heads_in``.
    heads
        Number of heads.
    heads_in, heads_out
        Whether heads have their own axis in the inputs and in the result.

    Returns
    -------
    Tensor
        ``[B, heads, tokens, channels]`` if ``heads_out``, otherwise ``[B, tokens, heads * channels]``.
    """
    if not heads_in:
        query, key, value = (
            part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value)
        )
    with sdpa_kernel(KERNEL_ORDER, set_priority=True):
        result = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    return result if heads_out else result.transpose(1, 2).flatten(2)
