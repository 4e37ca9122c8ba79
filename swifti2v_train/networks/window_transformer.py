"""The trained network: diffusers' Wan transformer with an explicit position for every latent frame.

ComfyUI's model, patched by `nodes/comfyui/window_model.py`, computes the same for a window
(tests/host/training/test_window_transformer.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanRotaryPosEmbed
from peft import LoraConfig
from torch import Tensor, nn

from ..config import Diffusion, Network, StageTwo
from .native_keys import load_native, native_shapes, to_diffusers, widen_patch_embedding

HEAD_DIM = 128
PATCH = (1, 2, 2)
LONGEST_CLIP = 1024
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

Positions = Sequence[Sequence[int]]
"""Time position of every latent frame, per sample."""

Timesteps = Sequence[float] | Sequence[Sequence[float]]
"""Per sample, or per sample and latent frame."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Wan transformer.

    Attributes
    ----------
    in_channels, out_channels
        96 and 48 for Stage II, 48 and 48 for TI2V-5B, 36 and 16 for A14B.
    heads, layers, ffn_dim, text_dim
        As in `config.Network`.
    """

    in_channels: int
    out_channels: int
    heads: int
    layers: int
    ffn_dim: int
    text_dim: int

    @property
    def dim(self) -> int:
        """Width of a token."""
        return self.heads * HEAD_DIM

    @classmethod
    def of(cls, weights: Mapping[str, Sequence[int]]) -> Shape:
        """Return the sizes of native weights from their shapes by name."""
        dim, in_channels = weights["patch_embedding.weight"][:2]
        return cls(
            in_channels=in_channels,
            out_channels=weights["head.head.weight"][0] // (PATCH[1] * PATCH[2]),
            heads=dim // HEAD_DIM,
            layers=1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks.")),
            ffn_dim=weights["blocks.0.ffn.0.weight"][0],
            text_dim=weights["text_embedding.0.weight"][1],
        )

    @classmethod
    def new(cls, network: Network, in_channels: int, out_channels: int) -> Shape:
        """Return the sizes of a network that starts from random weights."""
        sizes = (network.heads, network.layers, network.ffn_dim, network.text_dim)
        return cls(in_channels, out_channels, *sizes)


class FrameRotary(WanRotaryPosEmbed):
    """diffusers' rotary embedding with explicit time positions.

    Attributes
    ----------
    positions
        Time positions for the next forward pass.
    """

    positions: Positions = ()

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, ``[B, tokens, 1, 128]`` each, for ``[B, C, W, h, w]``."""
        batch, _, frames, *size = hidden_states.shape
        rows, columns = size[0] // PATCH[1], size[1] // PATCH[2]
        times = torch.tensor(self.positions, device=self.freqs_cos.device)
        tables = []
        for table in (self.freqs_cos, self.freqs_sin):
            time, row, column = table.split([self.t_dim, self.h_dim, self.w_dim], dim=1)
            parts = (
                time[times][:, :, None, None],
                row[:rows][None, None, :, None],
                column[:columns][None, None, None],
            )
            grid = [part.expand(batch, frames, rows, columns, -1) for part in parts]
            tables.append(torch.cat(grid, dim=-1).flatten(1, 3).unsqueeze(2))
        return tables[0], tables[1]


class ReadOnlyProcessor(WanAttnProcessor):
    """Self-attention in which clean tokens attend to clean tokens only.

    Two calls instead of a mask keep fast attention kernels usable.

    Attributes
    ----------
    clean_tokens
        Number of leading clean tokens of every sample in the next forward pass.
    """

    clean_tokens: Sequence[int] = ()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend; arguments as diffusers passes them."""
        assert rotary_emb is not None
        everything: Tensor = super().__call__(attn, hidden_states, None, None, rotary_emb)
        samples = []
        for sample, clean in enumerate(self.clean_tokens):
            part = slice(sample, sample + 1)
            cosines, sines = (table[part, :clean] for table in rotary_emb)
            seen = super().__call__(attn, hidden_states[part, :clean], None, None, (cosines, sines))
            samples.append(torch.cat((seen, everything[part, clean:]), dim=1))
        return torch.cat(samples)


class WindowTransformer(WanTransformer3DModel):
    """A Wan transformer over windows of latent frames."""

    def forward(
        self,
        latents: Tensor,
        timesteps: Timesteps,
        text: Tensor,
        positions: Positions,
        clean: Sequence[int],
    ) -> Tensor:
        """Predict the velocity.

        Parameters
        ----------
        latents
            ``[B, C_in, W, h, w]``, with concatenated conditions.
        timesteps
            0..1000, per sample: one for each of the W latent frames (TI2V), or one (A14B). Plain numbers,
            because FSDP casts tensors to the precision of the forward pass.
        text
            ``[B, L, text_dim]``.
        positions
            W time positions per sample.
        clean
            Number of leading clean latent frames per sample; only read-only context uses it.

        Returns
        -------
        Tensor
            ``[B, C_out, W, h, w]``.
        """
        frame_tokens = latents.shape[-2] // PATCH[1] * (latents.shape[-1] // PATCH[2])
        self.rope.positions = positions
        if isinstance(self.blocks[0].attn1.processor, ReadOnlyProcessor):
            self.blocks[0].attn1.processor.clean_tokens = [frames * frame_tokens for frames in clean]
        times = torch.as_tensor(timesteps, device=latents.device)
        if times.ndim == 2:
            times = times.repeat_interleave(frame_tokens, dim=1)
        velocity: Tensor = super().forward(latents, times, text, return_dict=False)[0]
        return velocity

    def use_read_only_context(self) -> None:
        """Let clean tokens attend to clean tokens only."""
        processor = ReadOnlyProcessor()  # one for all blocks, so clean_tokens is set once
        for block in self.blocks:
            block.attn1.set_processor(processor)


def empty_network(shape: Shape) -> WindowTransformer:
    """Return a network of a shape with random weights, float32."""
    network = WindowTransformer(
        patch_size=PATCH,
        num_attention_heads=shape.heads,
        attention_head_dim=HEAD_DIM,
        in_channels=shape.in_channels,
        out_channels=shape.out_channels,
        text_dim=shape.text_dim,
        ffn_dim=shape.ffn_dim,
        num_layers=shape.layers,
    )
    network.rope = FrameRotary(HEAD_DIM, PATCH, LONGEST_CLIP)
    # The initial velocity is zero, as with Wan's own initialization.
    nn.init.zeros_(network.proj_out.weight)
    nn.init.zeros_(network.proj_out.bias)
    return network


def network_from(state: dict[str, Tensor]) -> WindowTransformer:
    """Return a float32 network with native weights."""
    network = empty_network(Shape.of({key: tuple(value.shape) for key, value in state.items()}))
    network.load_state_dict(to_diffusers(state))
    return network


def training_shape(settings: Diffusion, in_channels: int, out_channels: int) -> Shape:
    """Return the sizes of a training's network; reads only the header of the base.

    Parameters
    ----------
    settings
        Names the base or the sizes of a new network.
    in_channels, out_channels
        Channels of the training's input and output. A base with ``out_channels`` inputs will be widened.

    Raises
    ------
    ValueError
        If the base does not fit, or a LoRA has no base.
    """
    if not settings.base:
        if settings.method == "lora":
            raise ValueError('base is "", but a LoRA needs existing weights; name native Wan weights.')
        return Shape.new(settings.network, in_channels, out_channels)
    shape = Shape.of(native_shapes(settings.base))
    if shape.out_channels != out_channels or shape.in_channels not in (in_channels, out_channels):
        raise ValueError(
            f"{settings.base} has {shape.in_channels} input and {shape.out_channels} output channels, but "
            f"this training needs {in_channels} (or {out_channels}, widened) and {out_channels}; "
            "name Wan2.2-TI2V-5B for Stage II and for 48-channel motion, Wan2.2-I2V-A14B for 16 channels."
        )
    return replace(shape, in_channels=in_channels)


def build_network(settings: Diffusion, shape: Shape) -> WindowTransformer:
    """Return the network of a training, ready to train.

    Parameters
    ----------
    settings
        Names the base and the method.
    shape
        See `training_shape`.
    """
    if settings.base:
        network = network_from(widen_patch_embedding(load_native(settings.base), shape.in_channels))
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = empty_network(shape)
    prepare_network(network, settings)
    return network


def prepare_network(network: WindowTransformer, settings: Diffusion) -> None:
    """Select the trained parameters, gradient checkpointing and context."""
    if settings.method == "lora":
        add_lora(network, settings)
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if isinstance(settings, StageTwo) and settings.context == "read-only":
        network.use_read_only_context()


def add_lora(network: WindowTransformer, settings: Diffusion) -> None:
    """Freeze all of a network except its patch embedding and add a LoRA to its blocks."""
    network.requires_grad_(False)
    if settings.precision == "bf16":
        _cast_frozen_weights(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network.add_adapter(
            LoraConfig(
                r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=list(LORA_TARGETS)
            )
        )
    network.patch_embedding.requires_grad_(True)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _cast_frozen_weights(network: WindowTransformer) -> None:
    """Cast weights to bfloat16, except those that diffusers keeps in float32."""
    for name, value in network.named_parameters():
        if not set(name.split(".")) & set(network._keep_in_fp32_modules):
            value.data = value.data.to(torch.bfloat16)
