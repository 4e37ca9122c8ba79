"""The task of the tiny autoencoder: reconstruct scenes rendered from photos.

The loss is the mean absolute error of the frames plus that of the levels of their Laplacian pyramid, which
count fine detail as much as broad color and so keep the decoder from blurring. The latents need not match
those of another autoencoder, because the stages are trained on this one; but their mean square, normalized
for the network, is kept near 1, that of the noise. Latent frame 0 encodes the photo alone, as in the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from ..config import Autoencoder
from ..data.clips import SEEDS
from ..data.photos import SUFFIXES, find_files, read_photo
from ..data.synthetic_scenes import draw_scene, render_scene
from ..networks.latent_statistics import WAN_2_2_MEAN, WAN_2_2_STD
from ..networks.tiny_vae import TinyVAE
from ..random_draws import generator, integer, uniform

PYRAMID_LEVELS = 4
SPREAD_WEIGHT = 0.01
"""Weight of the squared difference between the latents' mean square and 1."""


def build_autoencoder(settings: Autoencoder) -> TinyVAE:
    """Return the network, with random weights or those of ``settings.base``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = TinyVAE()
    if settings.base:
        network.load_state_dict({key: value.float() for key, value in load_file(settings.base).items()})
    return network


def laplacian_pyramid(frames: Tensor, levels: int = PYRAMID_LEVELS) -> list[Tensor]:
    """Return the Laplacian pyramid of ``[n, c, H, W]`` without its lowest level, finest level first.

    Each level has half the size of the one before: the picture minus itself averaged down and up again.
    """
    details = []
    for _ in range(levels):
        if min(frames.shape[-2:]) < 2:
            break
        smaller = functional.avg_pool2d(frames, 2)
        size = list(frames.shape[-2:])
        details.append(frames - functional.interpolate(smaller, size, mode="bilinear", align_corners=False))
        frames = smaller
    return details


def reconstruction_losses(made: Tensor, truth: Tensor, sharpness_weight: float) -> Tensor:
    """Return the losses ``[B]`` of clips ``[B, 3, F, H, W]``."""
    batch = len(truth)
    loss = (made - truth).abs().flatten(1).mean(dim=1)
    error = (made - truth).transpose(1, 2).flatten(0, 1)
    for detail in laplacian_pyramid(error):  # the pyramid is linear
        loss = loss + sharpness_weight * detail.abs().reshape(batch, -1).mean(dim=1)
    return loss


class AutoencoderTask:
    """The tiny autoencoder's `trainer.Task`.

    Parameters
    ----------
    settings
        See `config.Autoencoder`.

    Raises
    ------
    ValueError
        If there are no photos.
    """

    def __init__(self, settings: Autoencoder) -> None:
        self.settings = settings
        self.photos = find_files(settings.sources, SUFFIXES)

    def hardest_step(self) -> int:
        """Return the first step; all are equally costly."""
        return 0

    def losses(self, network: Any, step: int, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return the losses of a step's samples, ``[len(numbers)]``."""
        clips = torch.stack([self._clip(step, number) for number in numbers]).to(device)
        made, latents = network(clips, clips[:, :, :1])
        mean, std = (latents.new_tensor(v).view(-1, 1, 1, 1) for v in (WAN_2_2_MEAN, WAN_2_2_STD))
        spread: Tensor = (((latents - mean) / std) ** 2).flatten(1).mean(dim=1)
        reconstruction = reconstruction_losses(made, clips, self.settings.sharpness_weight)
        return reconstruction + SPREAD_WEIGHT * (spread - 1) ** 2

    def _clip(self, step: int, number: int) -> Tensor:
        """Return a clip ``[3, F, H, W]``: a scene in a random crop of a photo."""
        settings = self.settings
        rng = generator(settings.seed, step, number)
        width, height = settings.width, settings.height
        photo, other = (read_photo(self.photos[integer(rng, 0, len(self.photos))]) for _ in range(2))
        crop = random_crop(photo, width, height, rng)
        scene = draw_scene(integer(rng, 0, SEEDS), width / height, crop.shape[1] / height)
        return render_scene(crop, other, width, height, settings.frames, scene).permute(3, 0, 1, 2)

    @torch.no_grad()
    def sheet(self, network: Any, device: torch.device) -> list[Tensor]:
        """Return the contact sheet's rows ``[3, F, H, W]``: truth, reconstruction."""
        clip = self._clip(-1, 0)[None].to(device)
        return [clip[0], network(clip, clip[:, :, :1])[0][0]]


def random_crop(photo: Tensor, width: int, height: int, rng: torch.Generator) -> Tensor:
    """Return a random crop of a photo ``[1, H, W, 3]`` with the aspect ratio ``width / height``."""
    rows, columns = photo.shape[1:3]
    largest = min(columns / width, rows / height)
    scale = largest if largest <= 1 else math.exp(uniform(rng, 0, math.log(largest)))
    wide, high = max(1, int(width * scale)), max(1, int(height * scale))
    top, left = integer(rng, 0, rows - high + 1), integer(rng, 0, columns - wide + 1)
    return photo[:, top : top + high, left : left + wide]


def draw_frames(rows: Sequence[Tensor]) -> Tensor:
    """Return a contact sheet ``[H, W, 3]`` of clips: first, middle and last frame of each."""
    lines = [torch.cat([clip[:, i] for i in (0, clip.shape[1] // 2, -1)], dim=2) for clip in rows]
    return torch.cat(lines, dim=1).movedim(0, -1).clamp(0, 1)
