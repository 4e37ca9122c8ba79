"""Autoencoders between pixels in 0..1 and latents normalized as the network expects them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from safetensors.torch import load_file
from torch import Tensor, nn

from swifti2v_core.reference.hybrid import with_anchor

from .latent_statistics import WAN_2_2_MEAN, WAN_2_2_STD
from .tiny_vae import TinyVAE

TINY_KEY = "decoder.22.bias"
"""Key that only the tiny layout has; ComfyUI detects it by the same key."""

WAN_2_1_KEY = "encoder.downsamples.0.residual.0.gamma"


class VideoAutoencoder(Protocol):
    """Interface of the autoencoders.

    Attributes
    ----------
    latent_channels
        C, 48 or 16.
    spatial_factor
        Pixels per latent cell, 16 or 8.
    """

    latent_channels: int
    spatial_factor: int

    def encode(self, video: Tensor) -> Tensor:
        """Encode ``[B, 3, F, H, W]`` in 0..1, F = 4n+1, to ``[B, C, n+1, h, w]``."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decode ``[B, C, T, h, w]`` to ``[B, 3, 4T-3, H, W]`` in 0..1."""
        ...


class WanAutoencoder(nn.Module):
    """diffusers' autoencoder of Wan2.1 or Wan2.2 with latents of mean 0 and standard deviation 1.

    Parameters
    ----------
    model
        diffusers' ``AutoencoderKLWan``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.latent_channels: int = model.config.z_dim
        self.spatial_factor: int = model.config.scale_factor_spatial

    def encode(self, video: Tensor) -> Tensor:
        """See `VideoAutoencoder.encode`; returns the predicted mean, as ComfyUI does."""
        mean, std = self._statistics(video)
        latents: Tensor = self.model.encode(video * 2 - 1).latent_dist.mode()
        return (latents - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """See `VideoAutoencoder.decode`."""
        mean, std = self._statistics(latents)
        video: Tensor = self.model.decode(latents * std + mean).sample
        return (video / 2 + 0.5).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        mean, std = (
            like.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
        )
        return mean, std


class TinyAutoencoder(nn.Module):
    """The tiny autoencoder with normalized latents.

    ComfyUI treats its latents as Wan2.2's and normalizes them with the same mean and standard deviation.

    Parameters
    ----------
    model
        The tiny autoencoder.
    """

    latent_channels = TinyVAE.latent_channels
    spatial_factor = TinyVAE.spatial_factor

    def __init__(self, model: TinyVAE) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).view(1, -1, 1, 1, 1)) for values in (WAN_2_2_MEAN, WAN_2_2_STD)
        )

    def encode(self, video: Tensor) -> Tensor:
        """See `VideoAutoencoder.encode`."""
        return (self.model.encode(video) - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """See `VideoAutoencoder.decode`."""
        return self.model.decode(latents * self.std + self.mean).clamp(0, 1)


def load_autoencoder(path: str | Path) -> TinyAutoencoder | WanAutoencoder:
    """Load an autoencoder from local files; nothing is downloaded.

    Parameters
    ----------
    path
        A safetensors file, the tiny autoencoder or Wan2.1's with native keys, or a folder of diffusers'
        ``AutoencoderKLWan`` (with ``config.json``), for example Wan2.2's.

    Returns
    -------
    TinyAutoencoder or WanAutoencoder
        On the CPU in float32, frozen.

    Raises
    ------
    ValueError
        If the path holds none of these.
    """
    path = Path(path)
    model: TinyAutoencoder | WanAutoencoder
    if path.is_dir() and (path / "config.json").exists():
        model = WanAutoencoder(AutoencoderKLWan.from_pretrained(path, local_files_only=True))
    elif path.is_file():
        model = _from_file(path)
    else:
        raise ValueError(
            f"The autoencoder {path} does not exist; name the tiny safetensors file, Wan2.1's, or a folder "
            "of diffusers' AutoencoderKLWan."
        )
    return model.float().requires_grad_(False).train(False)


def _from_file(path: Path) -> TinyAutoencoder | WanAutoencoder:
    state = {key: value.float() for key, value in load_file(path).items()}
    if TINY_KEY in state:
        tiny = TinyVAE()
        tiny.load_state_dict(state)
        return TinyAutoencoder(tiny)
    if WAN_2_1_KEY in state:
        model = AutoencoderKLWan()
        model.load_state_dict(convert_wan_vae_to_diffusers(state))
        return WanAutoencoder(model)
    raise ValueError(
        f"{path} is neither the tiny autoencoder nor Wan2.1's; Wan2.2's is read from a diffusers folder "
        "with its config.json."
    )


@torch.no_grad()
def encode_clip(autoencoder: VideoAutoencoder, video: Tensor, photo: Tensor) -> Tensor:
    """Encode a clip so that latent frame 0 is the photo alone, as the nodes do.

    Parameters
    ----------
    autoencoder
        The autoencoder.
    video
        ``[B, 3, F, H, W]``.
    photo
        ``[B, 3, 1, H, W]``.
    """
    return with_anchor(autoencoder.encode(video), autoencoder.encode(photo))
