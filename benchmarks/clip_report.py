"""How good a clip is, in figures: sharpening, lattice, luma pulse, seams, motion; PSNR and SSIM.

Any video that PyAV reads, frame by frame, so that its length does not matter; with ``--truth``, a
clip of the same size and length to compare it with. What each figure means is said in
``swifti2v_core/metrics.py``::

    python benchmarks/clip_report.py CLIP.mp4
    python benchmarks/clip_report.py CLIP.mp4 --truth TRUTH.mp4 --segment-frames 3 --plot FILE.png
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import repository  # noqa: F401
import torch
from plot import GRAY, ORANGE, Panel, Series, save_panels

from swifti2v_core.geometry import FRAMES_PER_LATENT
from swifti2v_train.data.videos import read_frames
from swifti2v_train.evaluation.metrics import (
    LATTICE,
    ClipStatistics,
    laplacian_ratio,
    laplacian_slope,
    latent_means,
    lattice_peak,
    luma_pulse,
    measure_clip,
    motion_amount,
    seam_energy,
    segment_starts,
    slope,
)

ACCEPTED_LAPLACIAN = (0.9, 1.2)
"""Laplacian ratios to stay within; the clips the authors published end at 1.37 in the median."""


def show_progress(done: int) -> None:
    """Count the frames on a terminal."""
    if sys.stderr.isatty():
        print(f"\rframe {done}", end="", file=sys.stderr, flush=True)


def number(value: float, decimals: int) -> str:
    """Format a figure; what the clip is too short or too empty to tell is a dash."""
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def print_latent_frames(statistics: ClipStatistics) -> None:
    """Print one line per latent frame."""
    count = len(statistics.luma)
    columns = {
        "Laplacian": (laplacian_ratio(statistics), 2),
        "lattice": (lattice_peak(statistics), 2),
        "motion": (latent_means(statistics.motion) * 255, 2),
    }
    if statistics.psnr is not None and statistics.ssim is not None:
        columns |= {"PSNR": (latent_means(statistics.psnr), 2), "SSIM": (latent_means(statistics.ssim), 3)}
    print(f"{'latent frame':>12}{'frames':>10}" + "".join(f"{name:>11}" for name in columns))
    for index in range(len(columns["Laplacian"][0])):
        first, last = index * FRAMES_PER_LATENT - 3, min(index * FRAMES_PER_LATENT, count - 1)
        frames = f"{first}-{last}" if index and first < last else f"{last}"
        cells = (number(float(values[index]), decimals) for values, decimals in columns.values())
        print(f"{index:>12}{frames:>10}" + "".join(f"{cell:>11}" for cell in cells))


def strongest_frequency(statistics: ClipStatistics) -> str:
    """Name the frequency of the lattice that stands out most, in cycles per pixel."""
    y, x = LATTICE[int(latent_means(statistics.lattice).amax(dim=0).argmax())]
    names = {0: "0", 1: "1/4", -1: "-1/4", 2: "1/2"}
    return f"({names[x]}, {names[y]})"


def summary(statistics: ClipStatistics, segment_frames: int) -> dict[str, str]:
    """Return the figures of the whole clip, by name."""
    ratio, peak = laplacian_ratio(statistics), lattice_peak(statistics)
    period = FRAMES_PER_LATENT * segment_frames
    pulse, fast = (luma_pulse(statistics, lag, segment_frames) for lag in (period, FRAMES_PER_LATENT))
    end, most = number(float(ratio[-1]), 2), number(float(ratio.max()), 2)
    lines = {
        "Laplacian ratio": f"{end} at the end, at most {most} (1: as sharp as frame 0)",
        "Laplacian slope": f"{number(laplacian_slope(statistics), 4)} per latent frame, after frame 0",
        "lattice peak": f"{peak[0]:.2f} in frame 0, {peak[-1]:.2f} at the end, at most {peak.max():.2f} "
        "(about 1: none)",
        "lattice frequency": f"{strongest_frequency(statistics)} cycles per pixel, strongest of the peaks",
        "luma pulse": f"{number(pulse, 2)} at lag {period} (segments), {number(fast, 2)} at lag "
        f"{FRAMES_PER_LATENT} (latent frames) (0: none, 1: regular)",
        "seam energy": f"{number(seam_energy(statistics, segment_frames), 2)} (1: no seam)",
        "motion": f"{number(motion_amount(statistics) * 255, 2)} of 255 levels per frame",
    }
    # Frame 0 is the photo, not made by a model.
    made = slice(1, None) if len(statistics.luma) > 1 else slice(None)
    if statistics.psnr is not None and statistics.ssim is not None:
        decibel, similarity = statistics.psnr[made], statistics.ssim[made]
        lines["PSNR"] = f"{decibel.mean():.2f} dB, at least {decibel.min():.2f} dB (after frame 0)"
        lines["SSIM"] = f"{similarity.mean():.3f}, at least {similarity.min():.3f} (after frame 0)"
    return lines


def trend(ratio: torch.Tensor) -> Series:
    """Return the least-squares line through the generated latent frames."""
    if len(ratio) < 3:
        return Series("trend", [], [], ORANGE, "dashed")
    last, rise, middle = len(ratio) - 1, slope(ratio[1:]), float(ratio[1:].mean())
    reach = rise * (last - 1) / 2
    return Series("trend", [1, last], [middle - reach, middle + reach], ORANGE, "dashed")


def curves(statistics: ClipStatistics, segment_frames: int) -> list[Panel]:
    """Return the plots of sharpness, lattice and change."""
    ratio, peak = laplacian_ratio(statistics), lattice_peak(statistics)
    latent, frames = range(len(ratio)), range(len(statistics.luma))
    change = (statistics.change_energy.sqrt() * 255).tolist()
    motion = (statistics.motion * 255).tolist()
    none = Series("none", [0, latent[-1]], [1, 1], GRAY, "dashed")
    return [
        Panel(
            "Sharpness",
            "latent frame",
            "Laplacian ratio to frame 0",
            [Series("ratio", latent, ratio.tolist()), trend(ratio)],
            band=(*ACCEPTED_LAPLACIAN, "accepted"),
        ),
        Panel(
            "4-pixel lattice",
            "latent frame",
            "peak over spectrum around it",
            [Series("strongest peak", latent, peak.tolist()), none],
            show=(0, 2),
        ),
        Panel(
            "Change between frames",
            "frame",
            "8-bit levels",
            [Series("root mean square", frames, change), Series("motion", frames, motion, ORANGE)],
            marks=(segment_starts(len(frames), segment_frames), "segment starts"),
            show=(0, 1),
        ),
    ]


def pulse_panel(statistics: ClipStatistics, segment_frames: int) -> Panel:
    """Return the plot of the autocorrelation of luma changes, up to two segments."""
    period = FRAMES_PER_LATENT * segment_frames
    longest = max(period, min(2 * period, (len(statistics.luma) - 1) // 2))
    pulses = {lag: luma_pulse(statistics, lag, segment_frames) for lag in range(1, longest + 1)}
    special = {lag: pulses.pop(lag) for lag in {FRAMES_PER_LATENT, period}}
    lags = " and ".join(str(lag) for lag in sorted(special))
    bars = [
        Series("other lags", list(pulses), list(pulses.values()), GRAY, "bars"),
        Series(f"lag {lags}", list(special), list(special.values()), ORANGE, "bars"),
    ]
    return Panel("Luma pulse", "lag in frames", "autocorrelation of changes", bars, show=(-1, 0, 1))


def fidelity_panels(statistics: ClipStatistics, segment_frames: int) -> list[Panel]:
    """Return the plots of the likeness to the truth, none without a truth."""
    if statistics.psnr is None or statistics.ssim is None:
        return []
    frames = range(len(statistics.luma))
    marks = (segment_starts(len(frames), segment_frames), "segment starts")
    return [
        Panel("PSNR", "frame", "dB", [Series("PSNR", frames, statistics.psnr.tolist())], marks=marks),
        Panel("SSIM", "frame", "SSIM", [Series("SSIM", frames, statistics.ssim.tolist())], marks=marks),
    ]


def report(options: argparse.Namespace) -> None:
    """Measure the clip, print its figures, save the plot."""
    truth = read_frames(options.truth) if options.truth else None
    statistics = measure_clip(read_frames(options.clip), truth, show_progress)
    height, width = next(read_frames(options.clip)).shape[:2]
    if sys.stderr.isatty():
        print(file=sys.stderr)
    count, latent = len(statistics.luma), len(laplacian_ratio(statistics))
    heading = (
        f"{options.clip.name}: {count} frames of {width}x{height}, {latent} latent frames, "
        f"segments of {options.segment_frames}"
    )
    print(heading)
    print_latent_frames(statistics)
    for name, words in summary(statistics, options.segment_frames).items():
        print(f"{name:<19}{words}")
    if options.plot:
        m = options.segment_frames
        panels = [*curves(statistics, m), pulse_panel(statistics, m), *fidelity_panels(statistics, m)]
        save_panels(panels, heading, options.plot)


def main() -> None:
    """Read the command line; errors become one sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("clip", type=Path, metavar="CLIP")
    parser.add_argument("--truth", type=Path, help="a clip of the same size and length")
    parser.add_argument(
        "--segment-frames", type=int, default=3, metavar="M", help="latent frames per segment"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args()
    if options.segment_frames < 1:
        parser.error(f"--segment-frames is {options.segment_frames}, but it must be at least 1")
    try:
        report(options)
    except (OSError, ValueError) as error:  # PyAV's errors are among these
        sys.exit(f"clip_report.py: {error}")


if __name__ == "__main__":
    main()
