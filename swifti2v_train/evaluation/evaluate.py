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
"""Numbers of sampling steps to compare."""

SCENES = 1 << 40
"""Added to the seed, so that no scene is one of the training's."""


class Example(NamedTuple):
    """Input and target of a clip: frames ``[F, H, W, 3]``, latents ``[1, 48, T, h, w]``."""

    motion: Tensor
    truth: Tensor
    reference: Tensor
    true_latents: Tensor


class Evaluation:
    """Measures one network.

    Parameters
    ----------
    settings
        Sizes and autoencoders of the training data.
    network
        Stage II.
    stage_two
        Segments, context and shift of the weights.
    seed
        Seed of the noise.
    """

    def __init__(
        self, settings: Prepare, network: WindowTransformer, stage_two: StageTwo, seed: int
    ) -> None:
        self.encoder = Encoder(settings.model_copy(update={"stage_one": ""}))
        self.network = network.requires_grad_(False).to(self.encoder.device).train(False)
        if stage_two.context == "read-only":
            self.network.use_read_only_context()
        self.stage_two, self.seed = stage_two, seed

    @torch.no_grad()
    def example(self, clip: Truth) -> Example:
        """Return input and target of a clip; Stage I's autoencoder codes the motion, as in inference."""
        encoder, settings = self.encoder, self.encoder.settings
        truth = clip.frames.to(encoder.device)
        clean = average_down(truth, settings.motion_width, settings.motion_height)
        latents = encode_clip(encoder.motion_autoencoder, to_video(clean), to_video(clean[:1]))
        motion = to_frames(encoder.motion_autoencoder.decode(latents))
        reference = encode_reference(
            encoder.autoencoder, truth[:1], motion, settings.width, settings.height
        )
        true_latents = encode_clip(encoder.autoencoder, to_video(truth), to_video(truth[:1]))
        return Example(motion, truth, reference, true_latents)

    @torch.no_grad()
    def variants(self, example: Example) -> Iterator[tuple[str, Row, Tensor]]:
        """Yield name, figures and frames of each baseline and of Stage II at each number of steps."""
        settings, decode = self.encoder.settings, self.encoder.autoencoder.decode
        plain = resize(example.motion, settings.width, settings.height)
        yield PLAIN, figures(plain, example.truth), plain
        segments = plan_segments(
            example.reference.shape[2], self.stage_two.segment_frames, self.stage_two.neighbors
        )
        if self.stage_two.anchor_dropout == 1:  # the weights were trained without anchors
            segments = [without_anchor(segment) for segment in segments]
        for name, latents, seconds in self._latents(example, segments):
            frames = to_frames(decode(latents))
            gap = gap_figures(latents, example.reference, example.true_latents, segments)
            yield name, {**figures(frames, example.truth, seconds), **gap}, frames

    def _latents(self, example: Example, segments: list[Segment]) -> Iterator[tuple[str, Tensor, float]]:
        reference = example.reference
        yield CEILING, example.true_latents, math.nan
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
    """Measure Stage II weights on held-out photos and videos, and write tables and contact sheets.

    Parameters
    ----------
    config
        ``evaluate`` names weights and sources, ``prepare`` sizes and autoencoders, ``stage2`` the segments.

    Returns
    -------
    list of dict
        The figures, see `figures.Row`. ``evaluate.output`` receives ``figures.json``, ``table.md`` and one
        contact sheet per clip.

    Raises
    ------
    ValueError
        If a setting is invalid.
    """
    wanted, folder = config.evaluate, Path(config.evaluate.output)
    if not wanted.output:
        raise ValueError(
            "evaluate: output is empty, but the tables need a folder, for example runs/evaluation."
        )
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
        measured, strips = _measure(evaluation, clip)
        rows += measured
        save_sheet(strips, folder / f"{clip.name}.jpg")
    (folder / "figures.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    tables = f"{quality_table(rows)}\n\n{comparison_table(rows)}\n"
    (folder / "table.md").write_text(tables, encoding="utf-8")
    logger.info("Evaluation of %s:\n%s", wanted.stage_two, tables)
    return rows


def _measure(evaluation: Evaluation, clip: Truth) -> tuple[list[Row], list[Image.Image]]:
    example = evaluation.example(clip)
    rows: list[Row] = []
    strips = [strip("truth", example.truth)]
    for name, found, frames in evaluation.variants(example):
        facts: dict[str, Any] = {"frames": len(example.truth), "clip": clip.name, "variant": name}
        rows.append({**facts, "seed": evaluation.seed, **found})
        strips.append(strip(f"{name}, {found['PSNR']:.2f} dB", frames))
    return rows, strips
