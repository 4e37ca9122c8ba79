"""A dataset and settings small enough to train in seconds."""

import torch

from swifti2v_train.config import Config, Data, Network, StageOne, StageTwo
from swifti2v_train.data.dataset import DatasetWriter

NETWORK = Network(heads=1, layers=2, ffn_dim=64, text_dim=16)


def make_dataset(folder, lengths=(9, 8), channels=48, height=64, width=96, text_dim=NETWORK.text_dim):
    """Random clips of a few latent frames with two references each."""
    generator = torch.Generator().manual_seed(0)

    def latents(*shape):
        return torch.randn(*shape, height // 16, width // 16, generator=generator)

    with DatasetWriter(folder) as writer:
        for number, frames in enumerate(lengths):
            values = {
                "latents": latents(48, frames),
                "references": latents(2, 48, frames),
                "motion": latents(channels, frames),
                # With equal text tokens some gradients are rounding noise, which Adam scales to full steps.
                "text": torch.randn(3, text_dim, generator=generator),
            }
            if channels == 16:
                values["motion_photo"] = latents(16, frames)
            writer.append(
                f"clip-{number}", values, height=height, width=width, fps=16, source="none", sigmas=(0, 0.5)
            )
    return folder


def stage_two(output, **settings):
    common = {"steps": 6, "batch_size": 4, "network": NETWORK, "learning_rate": 1e-3, "rollout_steps": 2}
    return StageTwo(output=str(output), **{**common, **settings})


def stage_one(output, **settings):
    common = {"steps": 6, "batch_size": 2, "network": NETWORK, "learning_rate": 1e-3}
    return StageOne(output=str(output), **{**common, **settings})


def project(dataset, **sections):
    return Config(data=Data(folder=str(dataset)), **sections)


def changed(section, **settings):
    """A copy with other settings, whose limits are not checked."""
    return section.model_copy(update=settings)
