"""The prepare command: encode every clip once and write the dataset that training reads."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from swifti2v_core.geometry import check_size, latent_frame_count
from swifti2v_core.stage_one.photo_start import photo_then_gray

from ..config import Config, Prepare, load_section, save_config
from ..networks.autoencoder import VideoAutoencoder, encode_clip, load_autoencoder
from ..networks.native_keys import load_native
from ..networks.window_transformer import WindowTransformer, network_from
from ..random_draws import generator, uniform
from .clips import Truth, find_sources, make_clips
from .dataset import EMPTY_TEXT_TOKENS, DatasetWriter
from .stage_transition import denoise_again, encode_reference, to_video
from .synthetic_scenes import average_down

SETTINGS = "prepare.yaml"
"""File beside the dataset that keeps a later call from mixing clips made with other settings."""

FREE = ("sources", "clips_per_source", "shard_megabytes", "device")
"""Settings that may change between two calls, because no clip depends on them."""

MOST_LOST_SECONDS = 300
"""Longest time between writes, even of shards that are not full: the work that a killed process loses."""


class Encoder:
    """Encodes clips to the tensors of the dataset.

    Parameters
    ----------
    settings
        See `config.Prepare`.
    """

    def __init__(self, settings: Prepare) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.autoencoder = self._load_autoencoder(settings.autoencoder)
        self.motion_autoencoder: VideoAutoencoder = self.autoencoder
        if settings.motion_autoencoder:
            self.motion_autoencoder = self._load_autoencoder(settings.motion_autoencoder)
        self.stage_one: WindowTransformer | None = None
        if settings.stage_one:
            network = network_from(load_native(settings.stage_one))
            self.stage_one = network.requires_grad_(False).to(self.device)

    def _load_autoencoder(self, path: str) -> VideoAutoencoder:
        return load_autoencoder(path).to(self.device)

    @torch.no_grad()
    def tensors(self, clip: Truth) -> tuple[dict[str, Tensor], tuple[float, ...]]:
        """Return a clip's tensors by kind, see `dataset`, and the sigma of each reference."""
        settings = self.settings
        truth = clip.frames.to(self.device)
        motion = average_down(truth, settings.motion_width, settings.motion_height)
        made = {"latents": encode_clip(self.autoencoder, to_video(truth), to_video(truth[:1]))}
        made["motion"] = encode_clip(self.motion_autoencoder, to_video(motion), to_video(motion[:1]))
        if self.motion_autoencoder.latent_channels == 16:
            made["motion_photo"] = self.motion_autoencoder.encode(
                to_video(photo_then_gray(motion[:1], len(motion)))
            )
        references, sigmas = [self._reference(truth, motion)], [0.0]
        for variant in range(1, 1 + settings.variants if self.stage_one is not None else 1):
            softened, sigma = self._through_stage_one(clip.name, variant, made)
            references.append(self._reference(truth, softened))
            sigmas.append(sigma)
        made["references"] = torch.stack(references, dim=1)
        return {kind: value[0] for kind, value in made.items()}, tuple(sigmas)

    def _reference(self, truth: Tensor, motion: Tensor) -> Tensor:
        return encode_reference(
            self.autoencoder, truth[:1], motion, self.settings.width, self.settings.height
        )

    def _through_stage_one(self, name: str, variant: int, made: dict[str, Tensor]) -> tuple[Tensor, float]:
        settings, network, motion = self.settings, self.stage_one, made["motion"]
        assert network is not None
        rng = generator(settings.seed, "transition", name, variant)
        sigma = uniform(rng, settings.lowest_sigma, settings.highest_sigma)
        noise = torch.randn(motion.shape, generator=rng).to(motion)
        text = motion.new_zeros(1, EMPTY_TEXT_TOKENS, network.config.text_dim)
        photo = made.get("motion_photo", motion)
        softened = denoise_again(
            network, self.motion_autoencoder, motion, photo, text, noise, sigma, settings.transition_steps
        )
        return softened, sigma


def check_settings(settings: Prepare) -> None:
    """Raise ValueError if a size does not fit the others or the models, or the sigmas are invalid."""
    check_size(settings.width, settings.height)
    # Multiples of 32 suit the tiny and Wan2.2's autoencoder, multiples of 16 Wan2.1's.
    check_size(settings.motion_width, settings.motion_height, 16)
    latent_frame_count(settings.frames)
    wanted = settings.motion_width * settings.height / settings.width
    if settings.motion_height != wanted:
        raise ValueError(
            f"The motion is {settings.motion_width}x{settings.motion_height}, but must have the "
            f"proportions of {settings.width}x{settings.height}; the nearest valid height is {wanted:g}."
        )
    if settings.stage_one and not 0 < settings.lowest_sigma <= settings.highest_sigma:
        raise ValueError(
            f"lowest_sigma is {settings.lowest_sigma:g}, but must be above 0 and at most highest_sigma, "
            f"{settings.highest_sigma:g}; the nearest valid value is {settings.highest_sigma:g}."
        )


def keep_settings(settings: Prepare, folder: Path) -> None:
    """Write the settings beside the dataset, or check that they match those of an earlier call.

    Raises
    ------
    ValueError
        If the dataset was made with other settings.
    """
    kept = folder / SETTINGS
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_config(settings, kept)
        return
    earlier = dict(load_section(Prepare, kept))
    for name, value in settings:
        if name not in FREE and value != earlier[name]:
            raise ValueError(
                f"{name} is {value!r}, but the clips in {folder} were made with {earlier[name]!r}; set it "
                "back or name another folder."
            )


def run(config: Config) -> None:
    """Encode the clips that the dataset lacks; call again to continue after an interruption.

    Parameters
    ----------
    config
        ``prepare`` holds the settings, ``data.folder`` the place of the dataset.

    Raises
    ------
    ValueError
        If a setting is invalid.
    """
    settings, folder = config.prepare, Path(config.data.folder)
    if not config.data.folder:
        raise ValueError("data: folder is empty, but the dataset needs a folder, for example runs/data.")
    check_settings(settings)
    sources = find_sources(settings.sources)
    keep_settings(settings, folder)
    encoder = Encoder(settings)
    with (
        DatasetWriter(folder, int(settings.shard_megabytes * 2**20)) as writer,
        tqdm(total=len(sources) * settings.clips_per_source, unit="clip", desc="prepare") as bar,
    ):
        bar.update(len(writer))
        written = time.monotonic()
        for clip in make_clips(settings, sources, done=writer):
            tensors, sigmas = encoder.tensors(clip)
            writer.append(
                clip.name, tensors, height=settings.height, width=settings.width, fps=settings.fps,
                source=clip.source.as_posix(), sigmas=sigmas,
            )  # fmt: skip
            bar.update()
            if time.monotonic() - written > MOST_LOST_SECONDS:
                writer.close()
                written = time.monotonic()
