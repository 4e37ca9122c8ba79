"""Figures of a clip: sharpening, lattice, luma pulse, seams and motion; PSNR and SSIM against a truth.

Reads any video that PyAV reads, of any length, frame by frame; ``--truth`` names a clip of the same size
and length. `swifti2v_train.evaluation.metrics` explains the figures; ``--plot`` needs matplotlib::

    python -m benchmarks.quality.clip_report CLIP.mp4
    python -m benchmarks.quality.clip_report CLIP.mp4 --truth TRUTH.mp4 --segment-frames 3 --plot FILE.png
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

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
)


def show_progress(done: int) -> None:
    """Show the number of frames measured, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\rframe {done}", end="", file=sys.stderr, flush=True)


def number(value: float, decimals: int) -> str:
    """Format a figure; NaN, of a clip that is too short or too flat for it, is a dash."""
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
    """Return the strongest lattice frequency, in cycles per pixel."""
    y, x = LATTICE[int(latent_means(statistics.lattice).amax(dim=0).argmax())]
    names = {0: "0", 1: "1/4", -1: "-1/4", 2: "1/2"}
    return f"({names[x]}, {names[y]})"


def summary(statistics: ClipStatistics, segment_frames: int) -> dict[str, str]:
    """Return the figures of the whole clip as text, by name."""
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
    # Frame 0 is the photo.
    made = slice(1, None) if len(statistics.luma) > 1 else slice(None)
    if statistics.psnr is not None and statistics.ssim is not None:
        decibel, similarity = statistics.psnr[made], statistics.ssim[made]
        lines["PSNR"] = f"{decibel.mean():.2f} dB, at least {decibel.min():.2f} dB (after frame 0)"
        lines["SSIM"] = f"{similarity.mean():.3f}, at least {similarity.min():.3f} (after frame 0)"
    return lines


def report(options: argparse.Namespace) -> None:
    """Measure the clip, print its figures and save the plot."""
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
        from benchmarks.quality.clip_plot import save_plot  # matplotlib is a development dependency

        save_plot(statistics, options.segment_frames, heading, options.plot)


def main() -> None:
    """Report on a clip; errors are printed as one sentence."""
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
    except (ImportError, OSError, ValueError) as error:  # PyAV raises OSError and ValueError
        sys.exit(f"clip_report: {error}")


if __name__ == "__main__":
    main()
