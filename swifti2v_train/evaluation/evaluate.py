"""The evaluate command: Stage II on held-out clips with known truth, without ComfyUI."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from swifti2v_core.images import resize
from swifti2v_core.stage_two.segments import Segment, plan_segments

from ..config import Config, Prepare, StageTwo
from ..data.clips import Truth, find_sources, make_clips
from ..data.dataset import EMPTY_TEXT_TOKENS
from ..data.prepare import Encoder, check_settings
from ..data.stage_transition import encode_reference, to_frames, to_video
from ..data.synthetic_scenes import average_down
from ..networks.autoencoder import encode_clip
from ..networks.native_keys import load_native
from ..networks.sampling import generate_segments
from ..networks.window_transformer import WindowTransformer, network_from
from ..random_draws import generator
from ..tasks.stage_two import without_anchor
from .contact_sheets import save_sheet, strip
from .figures import CEILING, PLAIN, REFERENCE, Row, comparison_table, figures, gap_figures, quality_table

logger = logging.getLogger("SwiftI2V")

STEPS = (1, 2, 4)
"""Sampling steps that are put side by side."""

SCENES = 1 << 40
"""Added to the seed, so that scenes are not those of the training."""


class Task(NamedTuple):
    """What is given and what is wanted: frames ``[F, H, W, 3]``, latents ``[1, 48, T, h, w]``."""

    motion: Tensor
    truth: Tensor
    reference: Tensor
    true_latents: Tensor


class Evaluation:
    """Measures one network.

    Parameters
    ----------
    settings
        Sizes and autoencoders, as the training data was prepared with.
    network
        Stage II.
    stage_two
        How windows are cut.
    seed
        Of the noise.
    """

    def __init__(
        self, settings: Prepare, network: WindowTransformer, stage_two: StageTwo, seed: int
    ) -> None:
        self.encoder = Encoder(settings.model_copy(update={"stage_one": ""}))
        self.network = network.requires_grad_(False).to(self.encoder.device).train(False)
        if stage_two.context == "read-only":
            self.network.read_context_only()
        self.stage_two, self.seed = stage_two, seed

    @torch.no_grad()
    def task(self, clip: Truth) -> Task:
        """Return a clip's task; the motion went through Stage I's autoencoder, as a motion model's does."""
        encoder, settings = self.encoder, self.encoder.settings
        truth = clip.frames.to(encoder.device)
        clean = average_down(truth, settings.motion_width, settings.motion_height)
        latents = encode_clip(encoder.motion_autoencoder, to_video(clean), to_video(clean[:1]))
        motion = to_frames(encoder.motion_autoencoder.decode(latents))
        reference = encode_reference(
            encoder.autoencoder, truth[:1], motion, settings.width, settings.height
        )
        true_latents = encode_clip(encoder.autoencoder, to_video(truth), to_video(truth[:1]))
        return Task(motion, truth, reference, true_latents)

    @torch.no_grad()
    def variants(self, task: Task) -> Iterator[tuple[str, Row, Tensor]]:
        """Yield the name, the figures and the frames of the yardsticks and of Stage II's rollouts."""
        settings, decode = self.encoder.settings, self.encoder.autoencoder.decode
        plain = resize(task.motion, settings.width, settings.height)
        yield PLAIN, figures(plain, task.truth), plain
        segments = plan_segments(
            task.reference.shape[2], self.stage_two.segment_frames, self.stage_two.neighbors
        )
        if self.stage_two.anchor_dropout == 1:  # weights that have never seen an anchor
            segments = [without_anchor(segment) for segment in segments]
        for name, latents, seconds in self._latents(task, segments):
            frames = to_frames(decode(latents))
            gap = gap_figures(latents, task.reference, task.true_latents, segments)
            yield name, {**figures(frames, task.truth, seconds), **gap}, frames

    def _latents(self, task: Task, segments: list[Segment]) -> Iterator[tuple[str, Tensor, float]]:
        reference = task.reference
        yield CEILING, task.true_latents, math.nan
        yield REFERENCE, reference, math.nan
        noise = torch.randn(reference.shape, generator=generator(self.seed, "noise")).to(reference)
        text = reference.new_zeros(1, EMPTY_TEXT_TOKENS, self.network.config.text_dim)
        for steps in STEPS:
            begin = time.monotonic()
            made = generate_segments(
                self.network, reference, reference, text, noise, segments,
                steps=steps, shift=self.stage_two.shift,
            )  # fmt: skip
            yield f"CSG, {steps} step{'s' * (steps > 1)}", made, time.monotonic() - begin


def run(config: Config) -> list[Row]:
    """Measure Stage II weights on clips of held-out photos and videos, and write tables and sheets.

    Parameters
    ----------
    config
        ``evaluate`` says what, ``prepare`` at which size and with which autoencoders, ``stage2`` how
        windows are cut.

    Returns
    -------
    list of dict
        The figures, see `evidence.Row`; ``figures.json``, ``table.md`` and one contact sheet a clip are
        written to ``evaluate.output``.

    Raises
    ------
    ValueError
        If a setting does not fit.
    """
    wanted, folder = config.evaluate, Path(config.evaluate.output)
    if not wanted.output:
        raise ValueError("evaluate: output is empty, but the tables need a folder; name one.")
    changes = {"sources": wanted.sources, "seed": wanted.seed + SCENES, "device": wanted.device}
    settings = config.prepare.model_copy(update=changes)
    check_settings(settings)
    sources = find_sources(settings.sources)
    network = network_from(load_native(wanted.stage_two))
    evaluation = Evaluation(settings, network, config.stage2, wanted.seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    clips = make_clips(settings, sources)
    for clip in tqdm(clips, total=len(sources) * settings.clips_per_source, unit="clip", desc="evaluate"):
        found, strips = _measure(evaluation, clip)
        rows += found
        save_sheet(strips, folder / f"{clip.name}.jpg")
    (folder / "figures.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    tables = f"{quality_table(rows)}\n\n{comparison_table(rows)}\n"
    (folder / "table.md").write_text(tables, encoding="utf-8")
    logger.info("Evaluation of %s:\n%s", wanted.stage_two, tables)
    return rows


def _measure(evaluation: Evaluation, clip: Truth) -> tuple[list[Row], list[Image.Image]]:
    task = evaluation.task(clip)
    rows: list[Row] = []
    strips = [strip("truth", task.truth)]
    for name, found, frames in evaluation.variants(task):
        facts: dict[str, Any] = {"frames": len(task.truth), "clip": clip.name, "variant": name}
        rows.append({**facts, "seed": evaluation.seed, **found})
        strips.append(strip(f"{name}, {found['PSNR']:.2f} dB", frames))
    return rows, strips
