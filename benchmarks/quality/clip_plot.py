"""Plots of a clip's figures over time, by matplotlib."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swifti2v_core.geometry import FRAMES_PER_LATENT
from swifti2v_train.evaluation.metrics import (
    ClipStatistics,
    laplacian_ratio,
    lattice_peak,
    luma_pulse,
    segment_starts,
    slope,
)

ACCEPTED_LAPLACIAN = (0.9, 1.2)
"""Laplacian ratios to stay within; the clips the authors published end at 1.37 in the median."""

MOST_MARKERS = 70
"""Longer curves are drawn without a marker per value."""

WIDTH, HEIGHT, HEADING = 8.0, 4.0, 0.56
"""Inches of a panel, and of the heading above all of them; 100 pixels each."""

ORANGE, GRAY, GREEN, VIOLET = "tab:orange", "tab:gray", "tab:green", "tab:purple"


def save_plot(statistics: ClipStatistics, segment_frames: int, heading: str, path: Path) -> None:
    """Save the panels of a clip in two columns under a heading; those of PSNR and SSIM need a truth."""
    compared = statistics.psnr is not None and statistics.ssim is not None
    rows = 3 if compared else 2
    figure = Figure(figsize=(2 * WIDTH, rows * HEIGHT + HEADING), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(heading)
    panels = figure.subplots(rows, 2).flat
    draw_sharpness(next(panels), laplacian_ratio(statistics))
    draw_lattice(next(panels), lattice_peak(statistics))
    draw_change(next(panels), statistics, segment_frames)
    draw_pulse(next(panels), statistics, segment_frames)
    if statistics.psnr is not None and statistics.ssim is not None:
        draw_fidelity(next(panels), "PSNR", "dB", statistics.psnr, segment_frames)
        draw_fidelity(next(panels), "SSIM", "SSIM", statistics.ssim, segment_frames)
    figure.savefig(path)


def draw_sharpness(axes: Axes, ratio: torch.Tensor) -> None:
    """Draw the Laplacian ratio by latent frame, its trend and the accepted range."""
    _label(axes, "Sharpness", "latent frame", "Laplacian ratio to frame 0")
    axes.axhspan(*ACCEPTED_LAPLACIAN, color=GREEN, alpha=0.12, label="accepted")
    _draw_curve(axes, ratio, "ratio")
    if len(ratio) >= 3:  # the least-squares line through the generated latent frames
        last = len(ratio) - 1
        reach, middle = slope(ratio[1:]) * (last - 1) / 2, float(ratio[1:].mean())
        axes.plot([1, last], [middle - reach, middle + reach], "--", color=ORANGE, label="trend")
    axes.legend()


def draw_lattice(axes: Axes, peak: torch.Tensor) -> None:
    """Draw the strongest lattice peak by latent frame."""
    _label(axes, "4-pixel lattice", "latent frame", "peak over spectrum around it")
    _draw_curve(axes, peak, "strongest peak")
    axes.axhline(1, linestyle="--", color=GRAY, label="none")
    axes.set_ylim(bottom=0, top=max(2.0, 1.06 * float(peak.max())))
    axes.legend()


def draw_change(axes: Axes, statistics: ClipStatistics, segment_frames: int) -> None:
    """Draw the change from frame to frame and the part of it that is motion."""
    _label(axes, "Change between frames", "frame", "8-bit levels")
    _mark_segments(axes, len(statistics.luma), segment_frames)
    _draw_curve(axes, statistics.change_energy.sqrt() * 255, "root mean square")
    _draw_curve(axes, statistics.motion * 255, "motion", ORANGE)
    axes.set_ylim(bottom=0, top=max(1.0, 1.03 * axes.get_ylim()[1]))
    axes.legend()


def draw_pulse(axes: Axes, statistics: ClipStatistics, segment_frames: int) -> None:
    """Draw the autocorrelation of luma changes by lag, up to two segments."""
    _label(axes, "Luma pulse", "lag in frames", "autocorrelation of changes")
    period = FRAMES_PER_LATENT * segment_frames
    longest = max(period, min(2 * period, (len(statistics.luma) - 1) // 2))
    pulses = {lag: luma_pulse(statistics, lag, segment_frames) for lag in range(1, longest + 1)}
    special = {lag: pulses.pop(lag) for lag in sorted({FRAMES_PER_LATENT, period})}
    axes.bar(list(pulses), list(pulses.values()), 0.7, color=GRAY, label="other lags")
    name = f"lag {' and '.join(map(str, special))}"
    axes.bar(list(special), list(special.values()), 0.7, color=ORANGE, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlim=(0.5, longest + 0.5), ylim=(-1.06, 1.06))
    axes.legend()


def draw_fidelity(axes: Axes, name: str, unit: str, values: torch.Tensor, segment_frames: int) -> None:
    """Draw PSNR or SSIM by frame; infinite values leave a gap."""
    _label(axes, name, "frame", unit)
    _mark_segments(axes, len(values), segment_frames)
    _draw_curve(axes, values.where(values.isfinite(), torch.nan), name)
    axes.legend()


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(axis="y", alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_curve(axes: Axes, values: torch.Tensor, label: str, color: str = "tab:blue") -> None:
    marker = "o" if len(values) <= MOST_MARKERS else ""
    axes.plot(range(len(values)), values.tolist(), marker=marker, markersize=4, color=color, label=label)


def _mark_segments(axes: Axes, frames: int, segment_frames: int) -> None:
    for index, start in enumerate(segment_starts(frames, segment_frames)):
        label = "segment starts" if not index else None
        axes.axvline(start, color=VIOLET, alpha=0.4, linewidth=2, label=label)
