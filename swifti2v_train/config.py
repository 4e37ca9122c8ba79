"""The configuration of a project: dataclasses, read from and written to YAML.

Every section is one command of ``python -m swifti2v_train``. Paths are relative to the folder the
command is run in. What a setting may be is said once, in its declaration, and checked before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from swifti2v_core.sigmas import EXPERT_BOUNDARY, RECIPE_SHIFT

from .fields import from_values, number, plain_values

Precision = Literal["no", "bf16", "fp16"]
Method = Literal["full", "lora"]
Context = Literal["bidirectional", "read-only"]
Expert = Literal["both", "high", "low"]


@dataclass(frozen=True)
class Data:
    """The prepared dataset.

    Attributes
    ----------
    folder
        See `dataset.Dataset`.
    """

    folder: str = ""


@dataclass(frozen=True)
class Prepare:
    """What becomes the dataset.

    Attributes
    ----------
    sources
        Photos, videos, or folders of them.
    autoencoder, motion_autoencoder
        Of Stage II and of Stage I, see `autoencoder.load_autoencoder`; no second one: the first.
    stage_one
        Native Wan weights that make the stage-transition references; none: plain references only.
    width, height, motion_width, motion_height
        Pixels of Stage II and of Stage I.
    frames, fps
        Pixel frames of a clip, 4n+1, and their rate: 24 for TI2V-5B, 16 for A14B.
    clips_per_source
        Clips made of a photo, each with a scene of its own, or at most cut from a video.
    variants
        References made of a clip beside the plain one.
    lowest_sigma, highest_sigma
        Noise levels from which Stage I denoises those variants again.
    transition_steps
        Steps of that denoising.
    shard_megabytes
        Size at which a file of the dataset is full.
    device
        Where to compute, as PyTorch names it.
    """

    sources: tuple[str, ...] = ()
    autoencoder: str = ""
    motion_autoencoder: str = ""
    stage_one: str = ""
    width: int = number(2560, 32)
    height: int = number(1408, 32)
    motion_width: int = number(640, 16)
    motion_height: int = number(352, 16)
    frames: int = number(81, 5)
    fps: float = number(24, 0, open_low=True)
    clips_per_source: int = number(1, 1)
    variants: int = number(1, 0)
    lowest_sigma: float = number(0.2, 0, 1)
    highest_sigma: float = number(0.6, 0, 1)
    transition_steps: int = number(2, 1, 1000)
    shard_megabytes: float = number(1024, 0, open_low=True)
    seed: int = number(0, 0)
    device: str = "cpu"


@dataclass(frozen=True)
class Training:
    """What all trainings share.

    Attributes
    ----------
    output
        Folder of the run: checkpoints, its configuration, TensorBoard's files.
    seed
        Chooses everything random: a sample depends on it, the step and its number in the batch.
    steps
        Updates of the weights in the whole run.
    batch_size
        Samples of one update, of all processes together.
    micro_batch
        Samples of one forward; what is missing to ``batch_size`` is accumulated.
    learning_rate, warmup_steps, weight_decay
        Of AdamW; the rate rises linearly and then stays.
    gradient_clip
        Largest norm of the gradient.
    ema_decay
        Of the averaged weights, which are what is exported.
    precision
        Of the forward; weights are kept in float32.
    gradient_checkpointing
        Whether blocks are computed a second time in the backward instead of being remembered.
    checkpoint_steps, keep_checkpoints
        How often a checkpoint is written and how many stay.
    sheet_steps
        How often a contact sheet is drawn.
    stop_after_minutes
        A call of the command ends with a checkpoint after this long and is gone on with by the next one;
        0 never ends it.
    """

    output: str = ""
    seed: int = number(0, 0)
    steps: int = number(1000, 1)
    batch_size: int = number(8, 1)
    micro_batch: int = number(1, 1)
    learning_rate: float = number(1e-4, 0, open_low=True)
    warmup_steps: int = number(0, 0)
    weight_decay: float = number(0.01, 0)
    gradient_clip: float = number(1.0, 0, open_low=True)
    ema_decay: float = number(0.999, 0, 1)
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = number(500, 1)
    keep_checkpoints: int = number(2, 1)
    sheet_steps: int = number(500, 1)
    stop_after_minutes: float = number(0, 0)


@dataclass(frozen=True)
class Autoencoder(Training):
    """Training of the tiny autoencoder.

    Attributes
    ----------
    base
        Weights to go on from; none: random ones.
    sources
        Photos or folders of them; each sample is a crop that the camera moves over.
    width, height, frames
        Of a sample, in pixels and pixel frames (4n+1).
    sharpness_weight
        Weight of the loss of the Laplacian pyramid beside the plain one.
    """

    base: str = ""
    sources: tuple[str, ...] = ()
    width: int = number(256, 32)
    height: int = number(128, 32)
    frames: int = number(9, 5)
    sharpness_weight: float = number(1.0, 0)


@dataclass(frozen=True)
class Network:
    """A network to be trained from random weights.

    Attributes
    ----------
    heads, layers, ffn_dim, text_dim
        A head is 128 wide, as ComfyUI takes it to be.
    """

    heads: int = number(2, 1)
    layers: int = number(6, 1)
    ffn_dim: int = number(1024, 1)
    text_dim: int = number(4096, 1)


@dataclass(frozen=True)
class Diffusion(Training):
    """What the trainings of both stages share.

    Attributes
    ----------
    base
        Native Wan weights to begin with; none: random ones of ``network``.
    network
        See `Network`; ignored with a ``base``.
    method
        Train all weights, or a LoRA and the patch embedding.
    lora_rank, lora_alpha
        Of the LoRA.
    shift
        Resolution shift of the noise levels.
    """

    base: str = ""
    network: Network = field(default_factory=Network)
    method: Method = "full"
    lora_rank: int = number(32, 1)
    lora_alpha: float = number(32, 0, open_low=True)
    shift: float = number(RECIPE_SHIFT, 0, open_low=True)


@dataclass(frozen=True)
class StageOne(Diffusion):
    """Training of the motion model. The dataset says which kind: 48 channels TI2V-5B, 16 A14B.

    Attributes
    ----------
    expert
        Which noise levels are trained: all, from ``boundary`` up, or below it.
    boundary
        Sigma at which the experts of A14B change.
    """

    expert: Expert = "both"
    boundary: float = number(EXPERT_BOUNDARY, 0, 1)


@dataclass(frozen=True)
class StageTwo(Diffusion):
    """Training of the detail model. What each setting does to a sample is told in `windows`.

    Attributes
    ----------
    segment_frames, neighbors
        M and N.
    context
        Whether clean frames attend to all tokens or to clean ones only.
    reference_dropout, anchor_dropout
        Share of samples without a reference, share of steps without an anchor.
    neighbor_noise
        Largest sigma at which neighbors are mixed with noise.
    rollout_share
        Share of steps whose neighbors the model itself generates.
    rollout_segments, rollout_steps
        How many segments before the trained one it generates, and in how many steps each.
    """

    segment_frames: int = number(3, 1)
    neighbors: int = number(1, 0)
    context: Context = "bidirectional"
    reference_dropout: float = number(0.1, 0, 1)
    anchor_dropout: float = number(0.05, 0, 1)
    neighbor_noise: float = number(0.1, 0, 1)
    rollout_share: float = number(0.3, 0, 1)
    rollout_segments: int = number(1, 1)
    rollout_steps: int = number(4, 1)


@dataclass(frozen=True)
class Export:
    """What is written for ComfyUI: the averaged weights of a run.

    Attributes
    ----------
    run
        Folder of the training; its newest checkpoint is taken.
    file
        The safetensors file: full weights, or an adapter if the run trained a LoRA.
    merged_file
        With a LoRA: where the full weights go as well; none: nowhere.
    dtype
        Number format of the files.
    """

    run: str = ""
    file: str = ""
    merged_file: str = ""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"


@dataclass(frozen=True)
class Evaluate:
    """What is measured on held-out photos.

    Attributes
    ----------
    sources
        Photos, videos, or folders of them.
    stage_two
        Exported weights.
    output
        Folder for tables and pictures.
    """

    sources: tuple[str, ...] = ()
    stage_two: str = ""
    output: str = ""
    seed: int = number(0, 0)
    device: str = "cpu"


@dataclass(frozen=True)
class Config:
    """A project: one section per command, and the dataset they share."""

    data: Data = field(default_factory=Data)
    prepare: Prepare = field(default_factory=Prepare)
    autoencoder: Autoencoder = field(default_factory=Autoencoder)
    stage1: StageOne = field(default_factory=StageOne)
    stage2: StageTwo = field(default_factory=StageTwo)
    export: Export = field(default_factory=Export)
    evaluate: Evaluate = field(default_factory=Evaluate)


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration; settings that are not in the file keep their defaults.

    Parameters
    ----------
    path
        The YAML file.
    changes
        Settings that take the place of the file's, each ``section.setting=value``.

    Raises
    ------
    ValueError
        If the file is no YAML, names an unknown setting or gives a value that does not fit.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file ({error}); see the recipes folder.") from None
    values = values or {}
    for change in changes:
        _change(values, change)
    return from_values(Config, values, str(path))


def _change(values: dict[str, Any], change: str) -> None:
    """Put a setting, ``section.setting=value``, into what was read from a file."""
    name, sign, value = change.partition("=")
    *sections, setting = name.split(".")
    if not sign or not sections:
        raise ValueError(
            f'"{change}" changes no setting; write section.setting=value, for example stage2.steps=100.'
        )
    for section in sections:
        values = values.setdefault(section, {})
    values[setting] = yaml.safe_load(value) if value else ""


def save_config(section: Any, path: str | Path) -> None:
    """Write a section or a whole configuration with every setting spelled out."""
    values = plain_values(asdict(section))
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
