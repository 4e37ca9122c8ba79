"""The task of Stage I: denoise whole clips at low resolution.

The channels of the dataset's motion latents distinguish two kinds of model. TI2V-5B (48): latent frame 0 is
the clean photo at timestep 0, and the loss covers the other frames. A14B (16, with 36 = 16 noisy + 4 mask +
16 image as input): all frames are noisy and trained, the photo is a condition, and two experts divide the
noise levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from swifti2v_core.sigmas import even_timesteps, flow_sigmas, shift_sigma

from ..config import StageOne
from ..data.dataset import Dataset
from ..networks.sampling import generate_motion, motion_velocity
from ..random_draws import generator, integer, uniform

INPUT_CHANNELS = {48: 48, 16: 36}
"""Input channels of the network by channels of the motion latents."""

SHEET_STEPS = 4


def sigma_range(settings: StageOne) -> tuple[float, float]:
    """Return the range of sigmas that a training covers."""
    ranges = {"both": (0.0, 1.0), "high": (settings.boundary, 1.0), "low": (0.0, settings.boundary)}
    return ranges[settings.expert]


def unshift_sigma(sigma: float, shift: float) -> float:
    """Return the sigma that `sigmas.shift_sigma` maps to ``sigma``."""
    return sigma / (shift - (shift - 1) * sigma)


class MotionTask:
    """Stage I's `trainer.Task`.

    Parameters
    ----------
    dataset
        The prepared clips.
    settings
        See `config.StageOne`.
    text_dim
        Width of the network's text embeddings.

    Raises
    ------
    ValueError
        If the motion latents have unknown channels, or one forward pass would mix clips of several shapes.
    """

    def __init__(self, dataset: Dataset, settings: StageOne, text_dim: int) -> None:
        self.dataset, self.settings, self.text_dim = dataset, settings, text_dim
        self.channels = motion_channels(dataset)
        shapes = {(clip.latent_frames, clip.width, clip.height) for clip in dataset.clips}
        if settings.micro_batch > 1 and len(shapes) > 1:
            raise ValueError(
                f"micro_batch is {settings.micro_batch}, but the clips have {len(shapes)} lengths or "
                "sizes, which do not fit in one forward pass; the nearest valid value is 1."
            )

    def hardest_step(self) -> int:
        """Return the first step, as costly as any if all clips have one shape."""
        return 0

    def losses(self, network: Any, step: int, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return the losses of a step's samples, ``[len(numbers)]``."""
        truth, noise, photo, text, sigmas = (
            torch.stack(parts).to(device)
            for parts in zip(*(self._sample(step, number) for number in numbers), strict=True)
        )
        mix = sigmas.view(-1, 1, 1, 1, 1)
        noisy, clean = (1 - mix) * truth + mix * noise, 0
        if self.channels == 48:
            noisy, clean = torch.cat((truth[:, :, :1], noisy[:, :, 1:]), dim=2), 1
        velocity = motion_velocity(network, noisy, photo, sigmas, text)
        error = (velocity.float() - (noise - truth)) ** 2
        return error[:, :, clean:].flatten(1).mean(dim=1)

    def _sample(self, step: int, number: int) -> tuple[Tensor, ...]:
        rng = generator(self.settings.seed, step, number)
        clip = integer(rng, 0, len(self.dataset))
        low, high = (unshift_sigma(sigma, self.settings.shift) for sigma in sigma_range(self.settings))
        drawn = torch.tensor(uniform(rng, low, high), dtype=torch.float64)
        sigma = shift_sigma(drawn, self.settings.shift).float()
        truth = self.dataset.motion(clip)
        noise = torch.randn(truth.shape, generator=rng)
        return truth, noise, self._photo(clip), self.dataset.text(clip, self.text_dim), sigma

    def _photo(self, clip: int) -> Tensor:
        """Return the condition: A14B's encoded photo, TI2V-5B's clip, ``[C, T, h, w]``."""
        return self.dataset.motion_photo(clip) if self.channels == 16 else self.dataset.motion(clip)

    @torch.no_grad()
    def sheet(self, network: Any, device: torch.device) -> list[Tensor]:
        """Return the contact sheet's rows ``[C, T, h, w]``: truth, generated."""
        truth, photo = self.dataset.motion(0)[None].to(device), self._photo(0)[None].to(device)
        text = self.dataset.text(0, self.text_dim)[None].to(device)
        noise = torch.randn(truth.shape, generator=generator(self.settings.seed, "sheet")).to(device)
        sigmas = flow_sigmas(even_timesteps(SHEET_STEPS), self.settings.shift)
        made = generate_motion(network, truth, photo, text, noise, sigmas)
        return [truth[0], made[0]]


def motion_channels(dataset: Dataset) -> int:
    """Return the channels of a dataset's motion latents, 48 or 16; raises ValueError for others."""
    channels = dataset.motion(0).shape[0]
    if channels not in INPUT_CHANNELS:
        raise ValueError(
            f"The motion latents have {channels} channels, but Stage I has 48 (TI2V-5B) or 16 (A14B); "
            "prepare the dataset with one of these autoencoders."
        )
    return channels
