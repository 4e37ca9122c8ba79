"""Quality metrics without learned weights: fidelity, sharpening, lattice, pulse, seams, motion.

A clip is read once, frame by frame, so a 2K clip is never in memory as a whole: `measure_clip` keeps a few
numbers per frame, and every metric is computed from those. They detect the flaws of the clips that
SwiftI2V's authors published, which grow sharper from latent frame to latent frame through a fine mesh with
a period of four pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from kornia.metrics import psnr, ssim
from torch import Tensor

from swifti2v_core.geometry import FRAMES_PER_LATENT
from swifti2v_core.progress import Report, silent
from swifti2v_core.stage_two.segments import plan_segments

SSIM_WINDOW = 11
"""Side of the Gaussian window in pixels (sigma 1.5), as in Wang et al. 2004."""

TILE = 64
"""Side in pixels of the tiles whose spectra are averaged; the smallest valid frame."""

LATTICE = ((0, 1), (0, 2), (1, 0), (2, 0), (1, 1), (1, -1), (1, 2), (2, 1), (2, 2))
"""Where a pattern of period 4 has its energy, (y, x) in quarters of a cycle per pixel."""

NEIGHBORHOOD = (3, 4, 5, 6)
"""Distances from a peak in bins of 1/64 cycle per pixel; the Hann window blurs a peak over +-1."""

ROUNDING = 1 / 12 / 255**2
"""Variance that rounding to 8 bits adds to every pixel; smaller differences are meaningless."""

SHARPNESS_FLOOR = 1e-6
"""Below the sharpness of a 2K frame in which a single pixel is one 8-bit level off."""

PULSE_FLOOR = 0.25 / 255
"""Luma changes below a quarter of an 8-bit level are damped: invisible, and x264 alone makes 0.15."""

MOTION_ROWS = 180
"""Height in pixels to which frames are averaged down before motion is measured."""


class Fidelity(NamedTuple):
    """Similarity of a frame to the truth.

    Attributes
    ----------
    psnr
        Peak signal-to-noise ratio in dB, infinite for equal frames.
    ssim
        Mean structural similarity, -1..1.
    """

    psnr: float
    ssim: float


@dataclass(frozen=True)
class ClipStatistics:
    """The numbers kept of a clip of F frames, float64 on the CPU.

    Attributes
    ----------
    luma
        ``[F]``, mean luma, 0..1.
    sharpness
        ``[F]``, see `sharpness`.
    lattice
        ``[F, 9]``, see `lattice_ratios`.
    change_energy
        ``[F]``, mean squared luma change from the previous frame; NaN at frame 0.
    motion
        ``[F]``, mean absolute luma change from the previous frame at 180 rows, 0..1; NaN at frame 0.
        Averaging down suppresses noise and makes sizes comparable.
    psnr, ssim
        ``[F]``, see `Fidelity`; None without a truth.
    """

    luma: Tensor
    sharpness: Tensor
    lattice: Tensor
    change_energy: Tensor
    motion: Tensor
    psnr: Tensor | None = None
    ssim: Tensor | None = None


def measure_clip(
    frames: Iterable[Tensor], truth: Iterable[Tensor] | None = None, report: Report = silent
) -> ClipStatistics:
    """Measure a clip in one pass.

    Parameters
    ----------
    frames
        Frames ``[H, W, 3]`` float, 0..1, at least 64x64 and all of one size: a whole clip
        ``[F, H, W, 3]``, or an iterator, of which two frames are in memory at a time.
    truth
        As many frames of the same size to compare with.
    report
        Called after every frame.

    Raises
    ------
    ValueError
        If there are no frames, a frame is not as described, or the clips differ in length or size.
    """
    each: list[Tensor] = []
    changes: list[tuple[float, float]] = []
    similarity: list[Fidelity] = []
    before: Tensor | None = None
    for frame, wanted in _pairs(frames, truth):
        luma = _luma(frame)
        each.append(torch.cat((luma.mean()[None], _sharpness(luma)[None], lattice_ratios(luma))))
        changes.append(_change(before, luma))
        if wanted is not None:
            similarity.append(fidelity(frame, wanted))
        before = luma
        report(len(each))
    if not each:
        raise ValueError("The clip has no frames, but at least 1 is needed.")
    mean, sharp, *lattice = torch.stack(each).double().cpu().unbind(dim=1)
    energy, motion = torch.tensor(changes, dtype=torch.float64).unbind(dim=1)
    compared = torch.tensor(similarity, dtype=torch.float64).unbind(dim=1) if similarity else ()
    return ClipStatistics(mean, sharp, torch.stack(lattice, dim=1), energy, motion, *compared)


def _pairs(
    frames: Iterable[Tensor], truth: Iterable[Tensor] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield checked frames with their truth, one at a time."""
    size: torch.Size | None = None
    if truth is None:
        for frame in frames:
            size = _check_frame(frame, size)
            yield frame, None
        return
    for count, (frame, wanted) in enumerate(zip_longest(frames, truth)):
        if frame is None or wanted is None:
            ended = "clip" if frame is None else "truth"
            raise ValueError(
                f"The {ended} ends after {count} frames, but clip and truth must have the same length; "
                f"cut the other one to {count} frames."
            )
        size = _check_frame(frame, size)
        _check_frame(wanted, size)
        yield frame, wanted


def _check_frame(frame: Tensor, size: torch.Size | None) -> torch.Size:
    """Check one frame and that it has the size of earlier ones; return its size."""
    if frame.ndim != 3 or frame.shape[-1] != 3 or not frame.is_floating_point():
        raise ValueError(
            f"A frame is {frame.dtype} of shape {list(frame.shape)}, but it must be float of shape "
            "[height, width, 3]."
        )
    height, width = frame.shape[:2]
    if min(height, width) < TILE:
        raise ValueError(
            f"The frames are {width}x{height}, but both sides must be at least {TILE}; the nearest "
            f"valid size is {max(width, TILE)}x{max(height, TILE)}."
        )
    if size is not None and frame.shape != size:
        raise ValueError(
            f"A frame is {width}x{height}, but all frames must have the size of the first one, "
            f"{size[1]}x{size[0]}."
        )
    low, high = (float(bound) for bound in frame.aminmax())
    if not (low >= 0 and high <= 1):  # also false for NaN
        raise ValueError(f"A frame holds values from {low:g} to {high:g}, but they must be in 0..1.")
    return frame.shape


def _luma(frame: Tensor) -> Tensor:
    """Return the luma ``[H, W]`` float32 of a frame ``[H, W, 3]`` (Rec. 601 weights)."""
    gray: Tensor = rgb_to_grayscale(frame.float().movedim(-1, 0))
    return gray[0]


def fidelity(frame: Tensor, truth: Tensor) -> Fidelity:
    """Compare a frame with the truth, both ``[H, W, 3]`` in 0..1 and at least 6x6 pixels.

    SSIM is the mean over pixels and channels with a Gaussian window of 11 pixels (Wang et al. 2004).
    """
    a, b = frame.float().movedim(-1, 0)[None], truth.float().movedim(-1, 0)[None]
    return Fidelity(float(psnr(a, b, 1.0)), float(ssim(a, b, SSIM_WINDOW).mean()))


def sharpness(frame: Tensor) -> float:
    """Return the standard deviation of the Laplacian of the luma of a frame ``[H, W, 3]`` in 0..1."""
    return float(_sharpness(_luma(frame)))


def _sharpness(luma: Tensor) -> Tensor:
    vertical = luma[:-2, 1:-1] + luma[2:, 1:-1]
    horizontal = luma[1:-1, :-2] + luma[1:-1, 2:]
    return (vertical + horizontal - 4 * luma[1:-1, 1:-1]).std()


def lattice_ratios(luma: Tensor) -> Tensor:
    """Return the prominence of the spectrum at the frequencies of a 4-pixel lattice.

    Power is averaged over tiles of 64x64 pixels under a Hann window, so neither place nor phase of a
    lattice matters. At each frequency of `LATTICE` it is divided by the geometric mean of the power 3 to 6
    bins below and above it in the same direction. Fine texture, whose spectrum falls off evenly, has no
    peak, nor has the ridge of vertical and horizontal edges.

    Parameters
    ----------
    luma
        ``[H, W]`` float, 0..1, at least 64x64.

    Returns
    -------
    Tensor
        ``[9]``, in the order of `LATTICE`; ratios of power, 1 without a peak. Patterns weaker than the
        rounding to 8 bits are ignored.
    """
    tiles = luma.unfold(0, TILE, TILE).unfold(1, TILE, TILE).flatten(0, 1)
    hann = torch.hann_window(TILE, device=luma.device)
    window = hann[:, None] * hann
    power = torch.fft.fft2(tiles * window).abs().square().mean(dim=0) + ROUNDING * window.square().sum()
    points = torch.tensor(LATTICE, device=luma.device)
    distances = torch.tensor([sign * bins for bins in NEIGHBORHOOD for sign in (-1, 1)], device=luma.device)
    peaks = points * (TILE // 4) % TILE
    around = (peaks[:, None] + points.sign()[:, None] * distances[:, None]) % TILE
    level = power[around[..., 0], around[..., 1]].log().mean(dim=1).exp()
    ratios: Tensor = power[peaks[:, 0], peaks[:, 1]] / level
    return ratios


def _change(before: Tensor | None, luma: Tensor) -> tuple[float, float]:
    """Return change energy and motion between the luma of two frames; NaN without an earlier frame."""
    if before is None:
        return math.nan, math.nan
    difference = luma - before
    rows = min(MOTION_ROWS, luma.shape[0])
    columns = max(1, round(luma.shape[1] * rows / luma.shape[0]))
    blurred = F.adaptive_avg_pool2d(difference[None], (rows, columns))
    return float(difference.square().mean()), float(blurred.abs().mean())


def latent_means(values: Tensor) -> Tensor:
    """Average a series over the pixel frames of each latent frame.

    Parameters
    ----------
    values
        ``[F, ...]``, one entry per frame.

    Returns
    -------
    Tensor
        ``[T, ...]``: frame 0 alone, then the mean of every four frames; the last group may be shorter.
    """
    starts = range(1, len(values), FRAMES_PER_LATENT)
    later = [values[start : start + FRAMES_PER_LATENT].mean(dim=0) for start in starts]
    return torch.stack([values[0], *later])


def laplacian_ratio(statistics: ClipStatistics) -> Tensor:
    """Return the sharpness of each latent frame relative to frame 0, ``[T]``.

    Above 1 the clip is sharper than its photo. NaN where frame 0 has no detail at all.
    """
    first = statistics.sharpness[0]
    return latent_means(statistics.sharpness) / first.where(first > SHARPNESS_FLOOR, math.nan)


def laplacian_slope(statistics: ClipStatistics) -> float:
    """Return how fast the generated frames grow sharper, per latent frame.

    The least-squares slope of `laplacian_ratio` without frame 0, because the step from the photo to the
    first generated frame is not drift. NaN with fewer than two generated latent frames.
    """
    return slope(laplacian_ratio(statistics)[1:])


def slope(values: Tensor) -> float:
    """Return the least-squares slope of a series ``[T]`` per step; NaN with fewer than two values."""
    time = torch.arange(len(values), dtype=values.dtype)
    time -= time.mean()
    return float((time * values).sum() / time.square().sum())


def lattice_peak(statistics: ClipStatistics) -> Tensor:
    """Return the prominence of the strongest 4-pixel pattern of each latent frame, ``[T]``.

    A ratio of power, see `lattice_ratios`; about 1 without a pattern, more by chance in frames of few 64x64
    tiles. A photo may have a peak itself, as may sharp patterns of 6 or 8 pixels, whose harmonics lie
    here: growth over time is what counts.
    """
    return latent_means(statistics.lattice).amax(dim=1)


def luma_pulse(statistics: ClipStatistics, lag: int, segment_frames: int = 3) -> float:
    """Return how regularly the brightness of a clip jumps: an autocorrelation.

    Parameters
    ----------
    statistics
        The clip's.
    lag
        Period in frames, at least 1: ``4 * segment_frames`` for a pulse per segment, 4 for one per
        latent frame.
    segment_frames
        M, latent frames per segment. The trend, a moving mean over a segment, is removed first.

    Returns
    -------
    float
        Autocorrelation of the change of mean luma per frame, -1..1: near 1 if the same change recurs every
        ``lag`` frames, near -1 if it recurs with the opposite sign, near 0 if changes are unrelated or far
        below `PULSE_FLOOR`. A pulse per latent frame recurs at every multiple of 4, so a pulse per segment
        is one that lag 4 does not show. NaN for clips with fewer than two periods of changes.

    Raises
    ------
    ValueError
        If ``lag`` is below 1.
    """
    if lag < 1:
        raise ValueError(f"lag is {lag} frames, but it must be at least 1; the nearest valid value is 1.")
    change = statistics.luma.diff()
    if len(change) < 2 * lag:
        return math.nan
    reach = FRAMES_PER_LATENT * segment_frames // 2
    trend = F.avg_pool1d(change[None], 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    residual = change - trend[0]
    early, late = residual[:-lag], residual[lag:]
    strength = (early.square().mean() * late.square().mean()).sqrt() + PULSE_FLOOR**2
    return float((early * late).mean() / strength)


def segment_starts(frames: int, segment_frames: int = 3) -> list[int]:
    """Return the first frame of every segment after the first in a clip of ``frames`` frames."""
    latent_frames = len(latent_means(torch.zeros(frames)))
    if latent_frames < 2:
        return []
    later = plan_segments(latent_frames, segment_frames, neighbors=0)[1:]
    return [(segment.noisy[0] - 1) * FRAMES_PER_LATENT + 1 for segment in later]


def seam_energy(
    statistics: ClipStatistics, segment_frames: int = 3, starts: Sequence[int] | None = None
) -> float:
    """Return how much more a clip changes where segments meet than elsewhere.

    Every boundary is compared with equally many frames before and after it, half a segment each or up to
    the end of the clip, so a motion that speeds up or slows down makes no seam. The step from the photo to
    the first generated frame is left out.

    Parameters
    ----------
    statistics
        The clip's.
    segment_frames
        M, latent frames per segment, see `segments.plan_segments`.
    starts
        The boundaries to measure, by the first frame after each; None measures all, see `segment_starts`.

    Returns
    -------
    float
        Ratio of the mean squared luma change at boundaries to that elsewhere: 1 without seams, also if
        nothing changes beyond rounding to 8 bits. NaN for a clip of one segment.
    """
    energy, count = statistics.change_energy, len(statistics.change_energy)
    at_seams, elsewhere = [], []
    for start in segment_starts(count, segment_frames) if starts is None else starts:
        reach = min(FRAMES_PER_LATENT * segment_frames // 2, start - 2, count - 1 - start)
        if reach > 0:
            at_seams.append(energy[start])
            elsewhere.append(
                (energy[start - reach : start].mean() + energy[start + 1 : start + reach + 1].mean()) / 2
            )
    if not at_seams:
        return math.nan
    return float((torch.stack(at_seams).mean() + ROUNDING) / (torch.stack(elsewhere).mean() + ROUNDING))


def motion_amount(statistics: ClipStatistics) -> float:
    """Return the mean motion per frame, 0..1 in luma (`ClipStatistics.motion`); NaN for one frame."""
    return float(statistics.motion[1:].mean())
