"""Who attends to whom in one forward of the network: read-only context or temporal windows."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from ...swifti2v_core.attention.read_only import Attend, ReadOnlyContext
from ...swifti2v_core.attention.temporal_windows import attend_in_windows, plan_windows

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Query, key and value."""


@dataclass(frozen=True)
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
    tokens
        Length of the sequence that this forward runs on.
    """

    context: ReadOnlyContext
    conditioning: Hashable
    noisy_alone: bool
    tokens: int

    def attend(
        self, attend: Attend, parts: Parts, block: Hashable, token_dim: int, output_dim: int
    ) -> torch.Tensor:
        """Attend in a block's self-attention, from clean frames to clean frames only.

        Raises
        ------
        ValueError
            If the sequence holds more than the window's latent frames.
        RuntimeError
            If the clean frames' keys and values are reused in a block that did not run before.
        """
        query, key = (part.shape[token_dim] for part in parts[:2])
        if (query, key) != (self.tokens, self.tokens):
            raise ValueError(
                f"The model attends from {query} to {key} tokens, but the window has {self.tokens}: a "
                "reference was added that has no place in read-only context; remove the node that adds "
                "it, or choose bidirectional context."
            )
        slot = (self.conditioning, block)
        if not self.noisy_alone:
            return self.context.attend_window(
                attend, *parts, slot=slot, token_dim=token_dim, output_dim=output_dim
            )
        if not self.context.holds_layer(slot):
            raise RuntimeError(
                f"Block {block} runs in this step but did not in the segment's first step, in which "
                "read-only context keeps the clean frames; remove the node that skips blocks, or choose "
                "bidirectional context."
            )
        return self.context.attend_noisy(attend, *parts, slot=slot, token_dim=token_dim)


@dataclass(frozen=True)
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
    """

    window_frames: int
    frames: int
    frame_tokens: int

    @property
    def tokens(self) -> int:
        """Length of the sequence that this forward runs on."""
        return self.frames * self.frame_tokens

    def attend(
        self, attend: Attend, parts: Parts, block: int, token_dim: int, output_dim: int
    ) -> torch.Tensor:
        """Attend in a block's self-attention, inside the block's windows.

        Raises
        ------
        ValueError
            If the sequence holds more than the clip's latent frames.
        """
        query, key = (part.shape[token_dim] for part in parts[:2])
        if (query, key) != (self.tokens, self.tokens):
            raise ValueError(
                f"The model attends from {query} to {key} tokens, but {self.frames} latent frames of "
                f"{self.frame_tokens} tokens are {self.tokens}: a reference was added "
                "that has no place in temporal windows; remove the node that adds it, or SwiftI2V Temporal "
                "Window Attention."
            )
        windows = plan_windows(self.frames, self.window_frames, block)
        return attend_in_windows(attend, *parts, windows, token_dim=token_dim, output_dim=output_dim)


Rule = ReadOnlyForward | TemporalForward
"""Never both: the segment samplers refuse temporal windows shorter than their own."""
