"""The configuration of a project: one section per command, read from and written to YAML.

Paths are relative to the folder that the command runs in. Each setting declares its limits, and pydantic
checks them before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from swifti2v_core.sigmas import EXPERT_BOUNDARY, RECIPE_SHIFT


def _number_from_text(value: Any) -> Any:
    """Convert text to a number where possible: YAML 1.1 reads 1e-4 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _no_from_false(value: Any) -> Any:
    """Undo YAML 1.1, which reads a bare ``no`` as false."""
    return "no" if value is False else value


Number = Annotated[float, BeforeValidator(_number_from_text)]
Paths = Annotated[tuple[str, ...], Field(strict=False)]
"""Strict validation would refuse YAML's lists."""

Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_from_false)]
Method = Literal["full", "lora"]
Context = Literal["bidirectional", "read-only"]
Expert = Literal["both", "high", "low"]

RULES = {
    "bool_type": "true or false",
    "float_type": "a number, for example 0.0001",
    "int_type": "a whole number",
    "model_type": "a mapping of settings to values",
    "string_type": "text in quotes",
    "tuple_type": "a list of paths, for example [photos]",
}
"""What a value must be, in YAML's terms, where pydantic speaks of Python's types."""


class Section(BaseModel):
    """Settings that are fixed once made; unknown names and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Data(Section):
    """The prepared dataset.

    Attributes
    ----------
    folder
        Where `dataset.DatasetWriter` writes and `dataset.Dataset` reads.
    """

    folder: str = ""


class Prepare(Section):
    """How photos and videos become the dataset.

    Attributes
    ----------
    sources
        Photos, videos, or folders of them.
    autoencoder, motion_autoencoder
        Paths for Stage II and Stage I, see `autoencoder.load_autoencoder`. Without the second, both stages
        use the first.
    stage_one
        Native Wan weights that make the stage-transition references; empty: plain references only.
    width, height, motion_width, motion_height
        Size in pixels of Stage II and of Stage I.
    frames, fps
        Pixel frames of a clip, 4n+1, and their rate: 24 for TI2V-5B, 16 for A14B.
    clips_per_source
        Clips rendered from each photo, each with its own scene; at most this many are cut from a video.
    variants
        Stage-transition references per clip, in addition to the plain one.
    lowest_sigma, highest_sigma
        Range of the noise level from which Stage I denoises those variants.
    transition_steps
        Denoising steps of a variant.
    shard_megabytes
        Size at which a shard of the dataset is full.
    seed
        Seed of the scenes and the noise.
    device
        PyTorch device, for example ``cuda``.
    """

    sources: Paths = ()
    autoencoder: str = ""
    motion_autoencoder: str = ""
    stage_one: str = ""
    width: int = Field(2560, ge=32)
    height: int = Field(1408, ge=32)
    motion_width: int = Field(640, ge=16)
    motion_height: int = Field(352, ge=16)
    frames: int = Field(81, ge=5)
    fps: Number = Field(24.0, gt=0)
    clips_per_source: int = Field(1, ge=1)
    variants: int = Field(1, ge=0)
    lowest_sigma: Number = Field(0.2, ge=0, le=1)
    highest_sigma: Number = Field(0.6, ge=0, le=1)
    transition_steps: int = Field(2, ge=1, le=1000)
    shard_megabytes: Number = Field(1024.0, gt=0)
    seed: int = Field(0, ge=0)
    device: str = "cpu"


class Training(Section):
    """What all trainings share.

    Attributes
    ----------
    output
        Folder of the run: checkpoints, its configuration, TensorBoard's files.
    seed
        Seed of all random draws: a sample depends on it, the step and its number in the batch.
    steps
        Optimizer steps of the whole run.
    batch_size
        Samples per optimizer step, all processes together.
    micro_batch
        Samples per forward pass; gradients are accumulated up to ``batch_size``.
    learning_rate, warmup_steps, weight_decay
        AdamW's settings; the rate rises linearly for the warmup and then stays constant.
    gradient_clip
        Largest norm of the gradient.
    ema_decay
        Decay of the averaged weights, which are the ones exported.
    precision
        Mixed precision of the forward pass; the weights stay float32.
    gradient_checkpointing
        Whether the backward pass recomputes each block instead of storing its activations.
    checkpoint_steps, keep_checkpoints
        Steps between checkpoints, and how many are kept.
    sheet_steps
        Steps between contact sheets.
    stop_after_minutes
        Stop after this many minutes, saving a checkpoint; run again to continue. 0: no limit.
    """

    output: str = ""
    seed: int = Field(0, ge=0)
    steps: int = Field(1000, ge=1)
    batch_size: int = Field(8, ge=1)
    micro_batch: int = Field(1, ge=1)
    learning_rate: Number = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: Number = Field(0.01, ge=0)
    gradient_clip: Number = Field(1.0, gt=0)
    ema_decay: Number = Field(0.999, ge=0, le=1)
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    sheet_steps: int = Field(500, ge=1)
    stop_after_minutes: Number = Field(0.0, ge=0)


class Autoencoder(Training):
    """Training of the tiny autoencoder.

    Attributes
    ----------
    base
        Weights to start from; empty: random ones.
    sources
        Photos or folders of them; each sample is a camera move over a random crop.
    width, height, frames
        Size of a sample in pixels and pixel frames (4n+1).
    sharpness_weight
        Weight of the Laplacian pyramid's loss relative to the plain one.
    """

    base: str = ""
    sources: Paths = ()
    width: int = Field(256, ge=32)
    height: int = Field(128, ge=32)
    frames: int = Field(9, ge=5)
    sharpness_weight: Number = Field(1.0, ge=0)


class Network(Section):
    """Sizes of a network that starts from random weights.

    Attributes
    ----------
    heads, layers, ffn_dim, text_dim
        Sizes of a Wan transformer. A head is 128 wide, as ComfyUI assumes.
    """

    heads: int = Field(2, ge=1)
    layers: int = Field(6, ge=1)
    ffn_dim: int = Field(1024, ge=1)
    text_dim: int = Field(4096, ge=1)


class Diffusion(Training):
    """What the trainings of both stages share.

    Attributes
    ----------
    base
        Native Wan weights to start from; empty: random ones, sized by ``network``.
    network
        Sizes without a ``base``; ignored with one.
    method
        ``full`` trains all weights, ``lora`` a LoRA and the patch embedding.
    lora_rank, lora_alpha
        Rank and scale of the LoRA.
    shift
        Resolution shift of the noise schedule.
    """

    base: str = ""
    network: Network = Network()
    method: Method = "full"
    lora_rank: int = Field(32, ge=1)
    lora_alpha: Number = Field(32.0, gt=0)
    shift: Number = Field(RECIPE_SHIFT, gt=0)


class StageOne(Diffusion):
    """Training of the motion model; the dataset decides which: 48 channels TI2V-5B, 16 channels A14B.

    Attributes
    ----------
    expert
        Noise levels to train: all (``both``), above ``boundary`` (``high``), or below it (``low``).
    boundary
        Sigma at which A14B switches experts.
    """

    expert: Expert = "both"
    boundary: Number = Field(EXPERT_BOUNDARY, ge=0, le=1)


class StageTwo(Diffusion):
    """Training of the detail model; `tasks.stage_two` describes what each setting does to a sample.

    Attributes
    ----------
    segment_frames, neighbors
        M and N: latent frames made at once, and finished ones before them in the window.
    context
        Whether clean frames attend to all tokens (``bidirectional``) or to clean ones only.
    reference_dropout, anchor_dropout
        Share of samples without a reference, and of steps without an anchor.
    neighbor_noise
        Largest sigma of the noise mixed into the neighbors.
    rollout_share
        Share of steps whose neighbors the network generates itself.
    rollout_segments, rollout_steps
        How many segments it generates before the trained one, and the sampling steps of each.
    """

    segment_frames: int = Field(3, ge=1)
    neighbors: int = Field(1, ge=0)
    context: Context = "bidirectional"
    reference_dropout: Number = Field(0.1, ge=0, le=1)
    anchor_dropout: Number = Field(0.05, ge=0, le=1)
    neighbor_noise: Number = Field(0.1, ge=0, le=1)
    rollout_share: Number = Field(0.3, ge=0, le=1)
    rollout_segments: int = Field(1, ge=1)
    rollout_steps: int = Field(4, ge=1)


class Export(Section):
    """Where a run's averaged weights are written for ComfyUI.

    Attributes
    ----------
    run
        Output folder of a training; its newest checkpoint is exported.
    file
        The safetensors file: full weights, or an adapter if the run trained a LoRA.
    merged_file
        With a LoRA: a second file with the base and the LoRA merged; empty: none.
    dtype
        Number format of the files.
    """

    run: str = ""
    file: str = ""
    merged_file: str = ""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"


class Evaluate(Section):
    """What is measured on held-out photos and videos.

    Attributes
    ----------
    sources
        Photos, videos, or folders of them.
    stage_two
        Exported Stage II weights.
    output
        Folder for tables and contact sheets.
    seed
        Seed of the scenes and the noise.
    device
        PyTorch device, for example ``cuda``.
    """

    sources: Paths = ()
    stage_two: str = ""
    output: str = ""
    seed: int = Field(0, ge=0)
    device: str = "cpu"


class Config(Section):
    """A project: one section per command, and the dataset they share."""

    data: Data = Data()
    prepare: Prepare = Prepare()
    autoencoder: Autoencoder = Autoencoder()
    stage1: StageOne = StageOne()
    stage2: StageTwo = StageTwo()
    export: Export = Export()
    evaluate: Evaluate = Evaluate()


SectionType = TypeVar("SectionType", bound=Section)


def load_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """Read a configuration, see `load_section`."""
    return load_section(Config, path, changes)


def load_section(kind: type[SectionType], path: str | Path, changes: Sequence[str] = ()) -> SectionType:
    """Read one section or a whole configuration; settings that the file does not name keep their defaults.

    Parameters
    ----------
    kind
        What the file holds, for example `Config`.
    path
        The YAML file.
    changes
        Settings that replace those of the file, each ``section.setting=value``.

    Raises
    ------
    ValueError
        If the file is not YAML, or a setting is unknown or outside its limits.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        values = {} if values is None else values
        for change in changes:
            _change(values, change)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML ({error}); see the recipes folder.") from None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {_first_error(kind, error)}") from None


def _change(values: Any, change: str) -> None:
    """Apply ``section.setting=value`` to the values read from a file."""
    name, sign, value = change.partition("=")
    *sections, setting = name.split(".")
    if not sign or not sections:
        raise ValueError(
            f'"{change}" changes no setting; write section.setting=value, for example stage2.steps=100.'
        )
    for section in sections:
        if isinstance(values, dict):
            values = values.setdefault(section, {})
    if not isinstance(values, dict):
        raise ValueError(
            f'"{change}" cannot be set: in the file {sections[-1]} is {values!r}, not a mapping.'
        )
    values[setting] = yaml.safe_load(value) if value else ""


def _first_error(kind: type[Section], error: ValidationError) -> str:
    """Describe the first error in one sentence: section, setting, value and rule."""
    first = error.errors(include_url=False)[0]
    names = [str(name) for name in first["loc"] if isinstance(name, str)]
    if first["type"] == "extra_forbidden":
        *sections, setting = names
        known: Any = kind
        for section in sections:
            known = known.model_fields[section].annotation
        nearest = get_close_matches(setting, known.model_fields, n=1, cutoff=0)[0]
        place = ": ".join(sections) or "the file"
        return f'{place} has no setting "{setting}"; the nearest one is "{nearest}".'
    rule = RULES.get(first["type"], first["msg"].removeprefix("Input should be "))
    return f"{': '.join(names) or 'the file'} is {first['input']!r}, but must be {rule}."


def save_config(section: Section, path: str | Path) -> None:
    """Write a section or a whole configuration with every setting, defaults included."""
    values = section.model_dump(mode="json")
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
