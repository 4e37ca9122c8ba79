"""Estimate of a training before it starts: memory per process and time of the run.

Weights, gradients, AdamW's two moments and the averages are counted from the network's shape. Activations
are tokens times bytes per token, measured as the tensors that PyTorch saves for a block's backward pass.
Time is floating-point operations divided by an assumed speed. Not counted: the autoencoder that draws
contact sheets, the CUDA context (about 1 GiB), fragmentation in the allocator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from swifti2v_core.geometry import tokens_per_latent_frame

from ..config import Diffusion, StageTwo
from ..data.dataset import EMPTY_TEXT_TOKENS
from ..networks.window_transformer import PATCH, Shape, empty_network, prepare_network

GPU_TERAFLOPS, CPU_TERAFLOPS = 400.0, 0.05
"""Assumed speeds: about what the 5B forward reaches on one H200 in bf16, and two CPU cores in fp32."""

BLOCK_BYTES = {4: (121, 8), 2: (101, 4)}
"""By bytes per activation: bytes that a block saves per token, per unit of dim and of ffn_dim."""

TIME_FREQUENCIES = 256

OUTER_BYTES = 33, 3600
"""Bytes saved outside the blocks per token: per unit of dim, and independent of dim."""


@dataclass(frozen=True)
class Estimate:
    """Memory of one process in bytes, and the run's time.

    Attributes
    ----------
    parameters, trained
        Number of all parameters, and of the trained ones.
    states
        Bytes of weights, gradients, optimizer and averages.
    activations
        Bytes saved for one backward pass.
    tokens
        Tokens of one forward pass.
    flops
        Floating-point operations of one step, all processes together.
    seconds
        Time of the run.
    teraflops
        Assumed TFLOP/s of a process.
    """

    parameters: int
    trained: int
    states: int
    activations: int
    tokens: int
    flops: float
    seconds: float
    teraflops: float

    def text(self) -> str:
        """Return the estimate in two lines."""
        states, activations = self.states / 2**30, self.activations / 2**30
        return (
            f"Estimate: {self.parameters / 1e6:.1f} M parameters ({self.trained / 1e6:.1f} M trained), "
            f"{states + activations:.2f} GiB per process ({states:.2f} weights, gradients, optimizer and "
            f"averages; {activations:.2f} activations of {self.tokens} tokens).\n"
            f"Estimate: {self.flops / 1e12:.2f} TFLOP a step, {self.seconds / 3600:.2f} hours at "
            f"{self.teraflops:g} TFLOP/s per process."
        )


def estimate_training(
    settings: Diffusion,
    shape: Shape,
    tokens: int,
    processes: int = 1,
    *,
    sharded: bool = False,
    teraflops: float | None = None,
) -> Estimate:
    """Estimate a training of either stage.

    Parameters
    ----------
    settings, shape
        The training and its network.
    tokens
        Tokens of a sample.
    processes
        Number of processes.
    sharded
        Whether FSDP shards weights, gradients, optimizer and averages among them.
    teraflops
        TFLOP/s of a process; None assumes `GPU_TERAFLOPS` or `CPU_TERAFLOPS`.
    """
    with torch.device("meta"):
        network = empty_network(shape)
        prepare_network(network, settings)
    if teraflops is None:
        teraflops = GPU_TERAFLOPS if torch.cuda.is_available() else CPU_TERAFLOPS
    states = sum(value.numel() * value.element_size() for value in network.parameters())
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    states += 16 * trained  # gradient, two moments, average, four bytes each
    flops = forward_flops(shape, tokens) * settings.batch_size * forwards_per_step(settings)
    return Estimate(
        parameters=sum(value.numel() for value in network.parameters()),
        trained=trained,
        states=states // processes if sharded else states,
        activations=activation_bytes(settings, shape, settings.micro_batch * tokens),
        tokens=settings.micro_batch * tokens,
        flops=flops,
        seconds=settings.steps * flops / processes / (teraflops * 1e12),
        teraflops=teraflops,
    )


def window_tokens(settings: StageTwo, latent_frames: int, height: int, width: int) -> int:
    """Return the tokens of the longest window in clips of the given length and size in pixels."""
    frames = min(latent_frames, 1 + settings.neighbors + settings.segment_frames)
    return frames * tokens_per_latent_frame(height, width)


def motion_tokens(motion: Tensor) -> int:
    """Return the tokens of a motion clip ``[C, T, h, w]``."""
    _, frames, height, width = motion.shape
    return frames * (height // PATCH[1]) * (width // PATCH[2])


def activation_bytes(settings: Diffusion, shape: Shape, tokens: int) -> int:
    """Return the bytes saved for one backward pass."""
    element = 4 if settings.precision == "no" else 2
    per_dim, per_ffn = BLOCK_BYTES[element]
    block = tokens * (per_dim * shape.dim + per_ffn * shape.ffn_dim)
    outer = tokens * (OUTER_BYTES[0] * shape.dim + OUTER_BYTES[1])
    if settings.gradient_checkpointing:
        return outer + block + shape.layers * tokens * element * shape.dim
    return outer + block * shape.layers


def forward_flops(shape: Shape, tokens: int, text_tokens: int = EMPTY_TEXT_TOKENS) -> float:
    """Return the floating-point operations of one sample's forward pass; a multiply-add counts as two."""
    dim = shape.dim
    linear = 2 * tokens * (6 * dim**2 + 2 * dim * shape.ffn_dim) + 2 * text_tokens * 2 * dim**2
    attention = 4 * tokens * (tokens + text_tokens) * dim
    per_token_time = 2 * tokens * (TIME_FREQUENCIES * dim + 7 * dim**2)
    ends = 2 * tokens * dim * 4 * (shape.in_channels + shape.out_channels)
    text = 2 * text_tokens * (shape.text_dim * dim + dim**2)
    return shape.layers * (linear + attention) + per_token_time + ends + text


def forwards_per_step(settings: Diffusion) -> float:
    """Return the cost of a sample in forward passes: a backward pass counts as two, rollouts are added."""
    cost = 4.0 if settings.gradient_checkpointing else 3.0
    if isinstance(settings, StageTwo):
        cost += settings.rollout_share * settings.rollout_segments * settings.rollout_steps
    return cost
