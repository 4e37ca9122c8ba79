"""The three trainings as commands, their estimates, and the pipeline from photos to a measured Stage II.

A training checks its settings and its dataset before a model loads.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from swifti2v_core.geometry import latent_frame_count

from .config import Config, Training, load_config, save_config
from .data.dataset import INDEX, Dataset
from .evaluation.contact_sheets import latent_drawer
from .loop.estimate import Estimate, estimate_training, motion_tokens, window_tokens
from .loop.trainer import Draw, Outcome, Trainer, check_resumed, process_state
from .networks.autoencoder import load_autoencoder
from .networks.window_transformer import Shape, build_network, training_shape
from .tasks.autoencoder import AutoencoderTask, build_autoencoder, draw_frames
from .tasks.stage_one import INPUT_CHANNELS, MotionTask, motion_channels
from .tasks.stage_two import WindowSamples, WindowTask

STAGE_TWO_CHANNELS = 96, 48

PACKAGES = ("accelerate", "diffusers", "peft", "torch")
"""Packages whose versions are written beside a run's configuration."""


def pipeline(config: Config) -> list[tuple[str, dict[str, str]]]:
    """Return the commands that make and measure the tiny models, in order, with the settings each changes.

    Data is prepared twice: references are softened by the Stage I that is trained in between.
    """
    motion = str(Path(config.data.folder).with_name("motion"))

    def export(run: str, file: str) -> tuple[str, dict[str, str]]:
        return "export", {"export.run": run, "export.file": file}

    return [
        ("autoencoder", {}),
        export(config.autoencoder.output, config.prepare.autoencoder),
        ("prepare", {"data.folder": motion, "prepare.stage_one": ""}),
        ("stage1", {"data.folder": motion}),
        export(config.stage1.output, config.prepare.stage_one),
        ("prepare", {}),
        ("stage2", {}),
        ("export", {}),
        ("evaluate", {}),
    ]


def autoencoder(config: Config) -> Outcome:
    """Train the tiny autoencoder."""
    task = AutoencoderTask(config.autoencoder)
    begin_run(config, "autoencoder")
    return Trainer(task, build_autoencoder(config.autoencoder), config.autoencoder, draw_frames).run()


def stage1(config: Config) -> Outcome:
    """Train Stage I."""
    dataset, shape = Dataset(config.data.folder), stage_one_shape(config)
    task = MotionTask(dataset, config.stage1, shape.text_dim)
    begin_run(config, "stage1")
    draw = _drawer(config.prepare.motion_autoencoder or config.prepare.autoencoder)
    return Trainer(task, build_network(config.stage1, shape), config.stage1, draw).run()


def stage2(config: Config) -> Outcome:
    """Train Stage II."""
    dataset, shape = Dataset(config.data.folder), training_shape(config.stage2, *STAGE_TWO_CHANNELS)
    task = WindowTask(WindowSamples(dataset, config.stage2, shape.text_dim))
    begin_run(config, "stage2")
    draw = _drawer(config.prepare.autoencoder)
    return Trainer(task, build_network(config.stage2, shape), config.stage2, draw).run()


def stage_one_shape(config: Config) -> Shape:
    """Return the sizes of Stage I's network; the dataset's motion latents decide its channels."""
    channels = motion_channels(Dataset(config.data.folder))
    return training_shape(config.stage1, INPUT_CHANNELS[channels], channels)


def estimate(config: Config, section: str, processes: int, *, sharded: bool) -> Estimate | None:
    """Return what a training will need, or None for the tiny autoencoder.

    Without a dataset, Stage II is estimated for the clips that the prepare section describes.

    Parameters
    ----------
    config
        The project.
    section
        ``autoencoder``, ``stage1`` or ``stage2``.
    processes, sharded
        See `estimate.estimate_training`.
    """
    if section == "autoencoder":
        return None
    if section == "stage1":
        dataset = Dataset(config.data.folder)
        tokens = max(motion_tokens(dataset.motion(number)) for number in range(len(dataset)))
        return estimate_training(config.stage1, stage_one_shape(config), tokens, processes, sharded=sharded)
    planned = config.prepare
    sizes = [(latent_frame_count(planned.frames), planned.height, planned.width)]
    if (Path(config.data.folder) / INDEX).exists():
        clips = Dataset(config.data.folder).clips
        sizes = [(clip.latent_frames, clip.height, clip.width) for clip in clips]
    tokens = max(window_tokens(config.stage2, *size) for size in sizes)
    shape = training_shape(config.stage2, *STAGE_TWO_CHANNELS)
    return estimate_training(config.stage2, shape, tokens, processes, sharded=sharded)


def begin_run(config: Config, section: str) -> None:
    """Write a run's configuration and package versions, or check that a resumed run has the same settings.

    Raises
    ------
    ValueError
        If the section names no output folder, or a resumed run differs from its start.
    """
    settings: Training = getattr(config, section)
    if not settings.output:
        raise ValueError(
            f'{section}: output is "", but the run needs a folder, for example runs/{section}.'
        )
    path = Path(settings.output) / f"{section}.yaml"
    if path.exists():
        check_resumed(getattr(load_config(path), section), settings, path.parent)
    state = process_state()
    state.wait_for_everyone()  # all have read the old file before it is replaced
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_config(config, path)
        versions = {name: version(name) for name in PACKAGES}
        (path.parent / "versions.json").write_text(json.dumps(versions, indent=1), encoding="utf-8")
    state.wait_for_everyone()


def _drawer(path: str) -> Draw:
    return latent_drawer(load_autoencoder(path) if path else None)
