"""Figures of clips whose truth is known, and tables that compare Stage II with its baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from swifti2v_core.geometry import FRAMES_PER_LATENT
from swifti2v_core.stage_two.segments import Segment

from .metrics import (
    laplacian_ratio,
    laplacian_slope,
    latent_means,
    lattice_peak,
    luma_pulse,
    measure_clip,
    seam_energy,
    sharpness,
)

CEILING, PLAIN, REFERENCE = "truth, through the autoencoder", "plain upscaling", "z_ref, decoded"
"""Baselines without Stage II: the best possible latent, upscaled motion, and Stage II's input."""

COLUMNS = {
    "PSNR": 2,
    "SSIM": 4,
    "PSNR end": 2,
    "Laplacian": 3,
    "slope": 4,
    "sharpness": 3,
    "lattice": 2,
    "pulse": 2,
    "seam": 2,
    "gap closed": 3,
    "seconds": 1,
}
"""Decimals of each column, see `figures`."""

COMPARISON = (
    "better than plain upscaling in PSNR",
    "in SSIM",
    "in both",
    "PSNR over plain upscaling",
    "PSNR over z_ref, decoded",
    "gap closed, first segment",
    "last segment",
)

Row = dict[str, Any]
"""Figures by column, with ``frames``, ``clip``, ``variant`` and ``seed`` (None for a baseline)."""


def figures(clip: Tensor, truth: Tensor, seconds: float = math.nan) -> Row:
    """Return the figures of a clip.

    Parameters
    ----------
    clip, truth
        ``[F, H, W, 3]`` in 0..1, at least 64x64 pixels. Frame 0, the photo, is left out.
    seconds
        Time that sampling took.

    Returns
    -------
    dict
        PSNR and SSIM; PSNR end, that of the last latent frame; Laplacian, the sharpness of the last
        latent frame relative to frame 0, and its slope; sharpness, that of the last latent frame relative
        to the truth; lattice, the peak in the last latent frame; pulse at the lag of a segment of three
        latent frames, and seam, see `metrics`; seconds.
    """
    statistics = measure_clip(clip, truth)
    assert statistics.psnr is not None and statistics.ssim is not None
    last = statistics.sharpness[-FRAMES_PER_LATENT:].mean()
    true = np.mean([sharpness(frame) for frame in truth[-FRAMES_PER_LATENT:]])
    return {
        "PSNR": float(statistics.psnr[1:].mean()),
        "SSIM": float(statistics.ssim[1:].mean()),
        "PSNR end": float(latent_means(statistics.psnr)[-1]),
        "Laplacian": float(laplacian_ratio(statistics)[-1]),
        "slope": laplacian_slope(statistics),
        "sharpness": float(last) / float(true),
        "lattice": float(lattice_peak(statistics)[-1]),
        "pulse": luma_pulse(statistics, 12),
        "seam": seam_energy(statistics),
        "gap closed": math.nan,
        "seconds": seconds,
    }


def gap_figures(latents: Tensor, reference: Tensor, truth: Tensor, segments: Sequence[Segment]) -> Row:
    """Return the share of the reference's squared latent error that Stage II removed.

    Parameters
    ----------
    latents, reference, truth
        ``[B, C, T, h, w]``. Frame 0 is left out.
    segments
        The segment plan.

    Returns
    -------
    dict
        ``gap closed`` of the clip, and ``gap of segments``, a list: 0 for the reference, 1 for the truth,
        negative if the result is farther from the truth than the reference.
    """
    error, before = ((each - truth).square().mean(dim=(0, 1, 3, 4)) for each in (latents, reference))

    def closed(frames: Sequence[int]) -> float:
        return 1 - float(error[list(frames)].mean() / before[list(frames)].mean())

    return {
        "gap closed": closed(range(1, len(error))),
        "gap of segments": [closed(segment.noisy) for segment in segments],
    }


def spread(values: Sequence[float], decimals: int) -> str:
    """Return mean and standard deviation, of one value no deviation, a dash unless all are finite."""
    if not values or not all(math.isfinite(value) for value in values):
        return "-"
    mean = f"{np.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{decimals}f}"


def _groups(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    """Group the rows by length and variant."""
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["frames"], row["variant"]), []).append(row)
    return groups


def quality_table(rows: Sequence[Row], columns: Mapping[str, int] = COLUMNS) -> str:
    """Return mean and deviation of figures as a Markdown table, with the decimals of ``columns``."""
    lines = [
        "| frames | | runs | " + " | ".join(columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for (frames, name), group in _groups(rows).items():
        cells = [spread([row[column] for row in group], places) for column, places in columns.items()]
        lines.append(f"| {frames} | {name} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table that compares Stage II with plain upscaling and its own reference.

    Shares count runs, one per clip and seed. Differences are taken per clip, so their deviation excludes
    that between photos.
    """
    groups = _groups(rows)
    lines = ["| frames | | " + " | ".join(COMPARISON) + " |", "|---|---|" + "---|" * len(COMPARISON)]
    for (frames, name), group in groups.items():
        if name in (CEILING, PLAIN, REFERENCE):
            continue
        plain, reference = (
            {row["clip"]: row for row in groups[frames, baseline]} for baseline in (PLAIN, REFERENCE)
        )
        wins = [[row[key] > plain[row["clip"]][key] for key in ("PSNR", "SSIM")] for row in group]
        shares = [*np.mean(wins, axis=0), np.mean(np.all(wins, axis=1))]
        over = [[row["PSNR"] - other[row["clip"]]["PSNR"] for row in group] for other in (plain, reference)]
        ends = [[row["gap of segments"][place] for row in group] for place in (0, -1)]
        cells = [
            *(f"{share:.0%}" for share in shares),
            *(spread(values, 2) for values in over),
            *(spread(values, 3) for values in ends),
        ]
        lines.append(f"| {frames} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
