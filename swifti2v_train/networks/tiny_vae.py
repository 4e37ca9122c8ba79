"""The tiny video autoencoder: 48 channels, 16x16x4, in the layout of TAEHV.

ComfyUI's own VAE loader reads its weights (``comfy/taesd/taehv.py``, after
https://github.com/madebyollin/taehv). A latent frame holds four pixel frames. The decoder drops the
first three of all frames, so 4n+1 frames become n+1 latent frames and 4n+1 frames again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from swifti2v_core.geometry import FRAMES_PER_LATENT, LATENT_FACTOR
from swifti2v_core.reference.hybrid import with_anchor

LATENT_CHANNELS = 48
PATCH = 2
WIDTH = 64
DECODER_WIDTHS = (256, 128, 64, 64)
BLOCKS = 3


class Soften(nn.Module):
    """Limits latents to -3..3 smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``3 * tanh(x / 3)``."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """A residual block over each frame and the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, C, h, w]`` to the same shape; the frame before frame 0 is zero."""
        before = functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
        change = self.conv(torch.cat((x, before), dim=2).flatten(0, 1))
        return torch.relu(change.view_as(x) + x)


class TimePool(nn.Module):
    """Merges ``stride`` frames into one."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, C, h, w]`` to ``[B, T / stride, C, h, w]``."""
        batch, frames, width, *size = x.shape
        merged = x.reshape(batch, frames // self.stride, width * self.stride, *size)
        return per_frame(self.conv, merged)


class TimeGrow(nn.Module):
    """Expands one frame into ``stride`` frames."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, T, C, h, w]`` to ``[B, T * stride, C, h, w]``."""
        batch, frames, width, *size = x.shape
        return per_frame(self.conv, x).reshape(batch, frames * self.stride, width, *size)


class TinyVAE(nn.Module):
    """The tiny autoencoder; random weights until some are loaded."""

    latent_channels = LATENT_CHANNELS
    spatial_factor = LATENT_FACTOR

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(3 * PATCH**2, WIDTH, 3, padding=1), nn.ReLU()]
        for stride in (2, 2, 1):
            encoder += [TimePool(WIDTH, stride), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1, bias=False)]
            encoder += [MemoryBlock(WIDTH) for _ in range(BLOCKS)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(WIDTH, LATENT_CHANNELS, 3, padding=1))

        first = DECODER_WIDTHS[0]
        decoder: list[nn.Module] = [Soften(), nn.Conv2d(LATENT_CHANNELS, first, 3, padding=1), nn.ReLU()]
        for width, narrower, stride in zip(DECODER_WIDTHS, DECODER_WIDTHS[1:], (1, 2, 2), strict=False):
            decoder += [MemoryBlock(width) for _ in range(BLOCKS)]
            decoder += [nn.Upsample(scale_factor=2), TimeGrow(width, stride)]
            decoder += [nn.Conv2d(width, narrower, 3, padding=1, bias=False)]
        last = nn.Conv2d(DECODER_WIDTHS[-1], 3 * PATCH**2, 3, padding=1)
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), last)

    def encode(self, video: Tensor) -> Tensor:
        """Encode ``[B, 3, F, H, W]`` in 0..1 to ``[B, 48, ceil(F / 4), H / 16, W / 16]``.

        The last frame is repeated to make F a multiple of four.
        """
        frames = video.transpose(1, 2)
        missing = -frames.shape[1] % FRAMES_PER_LATENT
        frames = torch.cat((frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1)
        return run(self.encoder, functional.pixel_unshuffle(frames, PATCH)).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``[B, 48, T, h, w]`` to ``[B, 3, 4 * T - 3, 16 * h, 16 * w]``, roughly in 0..1."""
        frames = functional.pixel_shuffle(run(self.decoder, latents.transpose(1, 2)), PATCH)
        return frames[:, FRAMES_PER_LATENT - 1 :].transpose(1, 2)

    def forward(self, video: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and decode a clip as the pack does: latent frame 0 is the photo alone.

        Parameters
        ----------
        video
            ``[B, 3, F, H, W]``.
        photo
            ``[B, 3, 1, H, W]``.

        Returns
        -------
        tuple of Tensor
            The reconstruction, ``[B, 3, F, H, W]``, and the latents ``[B, 48, T, h, w]``.
        """
        latents = with_anchor(self.encode(video), self.encode(photo))
        return self.decode(latents), latents


def run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Run layers over ``[B, T, C, h, w]``; image layers see one frame at a time."""
    for layer in layers:
        timed = isinstance(layer, MemoryBlock | TimePool | TimeGrow)
        x = layer(x) if timed else per_frame(layer, x)
    return x


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply an image layer to every frame of ``[B, T, C, h, w]``."""
    result: Tensor = layer(x.flatten(0, 1))
    return result.reshape(*x.shape[:2], *result.shape[1:])
