"""Every metric on clips whose answer is known."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from swifti2v_core.stage_one.camera import CameraMove, camera_motion
from swifti2v_train.evaluation.metrics import (
    ClipStatistics,
    fidelity,
    laplacian_ratio,
    laplacian_slope,
    latent_means,
    lattice_peak,
    luma_pulse,
    measure_clip,
    motion_amount,
    seam_energy,
    segment_starts,
    sharpness,
    slope,
)


def natural_photo(height=128, width=192, seed=0):
    """Noise with the spectrum of a photo (amplitude 1/f), ``[1, H, W, 3]`` around middle gray."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    spectrum = torch.fft.fft2(noise) / frequency.clamp_min(1 / width)
    photo = torch.fft.ifft2(spectrum).real
    return (0.5 + 0.1 * photo / photo.std()).clamp(0, 1).movedim(0, -1)[None]


def repeated(photo, frames):
    return photo.expand(frames, -1, -1, -1).clone()


def pattern(height, width, period):
    """A checkerboard of squares of half a period; for an odd period, one pixel in each square of it."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    if period % 2:
        return ((y % period == 0) & (x % period == 0)).float()[..., None]
    half = period // 2
    return ((y // half + x // half) % 2 * 2.0 - 1)[..., None]


def test_identical_clips_have_the_best_fidelity():
    clip = repeated(natural_photo(), 2)
    statistics = measure_clip(clip, clip)
    assert torch.isinf(statistics.psnr).all()
    assert statistics.ssim.min() > 0.999999
    assert measure_clip(clip).psnr is None and measure_clip(clip).ssim is None


@pytest.mark.parametrize(("offset", "decibel"), [(0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_known_offset(offset, decibel):
    truth = natural_photo() * 0.5 + 0.2
    statistics = measure_clip(repeated(truth + offset, 2), repeated(truth, 2))
    assert statistics.psnr.tolist() == pytest.approx([decibel] * 2, abs=1e-3)


def test_ssim_of_flat_frames_is_the_luminance_term():
    dark, bright = torch.full((64, 64, 3), 0.3), torch.full((64, 64, 3), 0.5)
    expected = (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4)
    assert fidelity(dark, bright).ssim == pytest.approx(expected, abs=1e-4)


def test_fidelity_agrees_with_an_independent_implementation():
    truth = natural_photo()[0]
    frame = (truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(
        0, 1
    )
    a, b = frame.double().numpy(), truth.double().numpy()

    def blur(image):  # scipy's own Gaussian: 11 taps, mirrored as torch's "reflect"
        return gaussian_filter(image, (1.5, 1.5, 0), radius=(5, 5, 0), mode="mirror")

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
    similarity /= (mean_a**2 + mean_b**2 + 1e-4) * (variance_a + variance_b + 9e-4)
    result = fidelity(frame, truth)
    assert result.psnr == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), abs=1e-4)
    assert result.ssim == pytest.approx(similarity.mean(), abs=1e-5)


def test_sharpness_of_a_checkerboard():
    # Every Laplacian is +-8 times the amplitude.
    board = 0.5 + 0.1 * pattern(64, 64, 2).expand(-1, -1, 3)
    assert sharpness(board) == pytest.approx(0.8, rel=1e-3)


def test_frames_fall_into_latent_frames():
    assert latent_means(torch.arange(9.0)).tolist() == [0, 2.5, 6.5]
    assert latent_means(torch.arange(7.0)).tolist() == [0, 2.5, 5.5]
    assert latent_means(torch.arange(1.0)).tolist() == [0]


def test_a_clip_that_grows_sharper_has_the_slope_of_its_growth():
    photo, latent_frames = natural_photo(64, 96) * 0.5 + 0.25, 8
    gains = [1 + 0.05 * max(0, math.ceil(frame / 4)) for frame in range(4 * latent_frames - 3)]
    statistics = measure_clip(torch.cat([0.5 + (photo - 0.5) * gain for gain in gains]))
    ratio = laplacian_ratio(statistics)
    assert ratio.tolist() == pytest.approx([1 + 0.05 * t for t in range(latent_frames)], rel=1e-3)
    assert slope(ratio) == pytest.approx(0.05, rel=1e-2)
    sharper_at_once = of_luma([1.0, *[3.0] * 8])  # the step from the photo is no trend
    assert laplacian_ratio(sharper_at_once).tolist() == [1, 3, 3] and laplacian_slope(sharper_at_once) == 0
    assert laplacian_slope(statistics) == pytest.approx(0.05, rel=1e-2)
    assert laplacian_slope(measure_clip(repeated(photo, 9))) == pytest.approx(0, abs=1e-6)


def test_a_first_frame_without_detail_has_no_ratio():
    assert laplacian_ratio(measure_clip(torch.full((5, 64, 64, 3), 0.3))).isnan().all()


@pytest.mark.parametrize("seed", range(3))
def test_a_photo_alone_has_no_lattice(seed):
    assert measure_clip(natural_photo(512, 768, seed)).lattice.max() < 1.5


@pytest.mark.parametrize("period", [4, 2])
def test_a_four_pixel_lattice_stands_out(period):
    """One that repeats every 2 pixels repeats every 4, too."""
    photo = natural_photo()
    clip = repeated(photo, 9)
    clip[5:] += 0.02 * pattern(128, 192, period)
    before, middle, last = lattice_peak(measure_clip(clip.clamp(0, 1))).tolist()
    assert before == pytest.approx(middle) and before < 2
    assert last > 10 * before


@pytest.mark.parametrize("period", [3, 5, 7])
def test_other_lattices_do_not(period):
    photo = natural_photo()
    plain, marked = (
        lattice_peak(measure_clip(clip)).item()
        for clip in (photo, (photo + 0.02 * pattern(128, 192, period)).clamp(0, 1))
    )
    assert marked < 1.2 * plain


def test_a_lattice_counts_wherever_it_lies_and_whatever_its_phase():
    photo = natural_photo()
    half = 0.02 * pattern(128, 192, 4)
    half[:, 96:] *= -1  # the two halves would cancel in a spectrum of the whole frame
    half[64:] = 0
    assert lattice_peak(measure_clip((photo + half).clamp(0, 1))).item() > 10


def test_edges_along_the_rows_are_no_lattice():
    stripes = natural_photo().mean(dim=1, keepdim=True).expand(-1, 128, -1, -1)
    assert lattice_peak(measure_clip(stripes)).item() < 3


def test_flat_frames_and_patterns_below_rounding_have_no_lattice():
    clip = torch.full((5, 64, 64, 3), 0.5)
    assert torch.allclose(lattice_peak(measure_clip(clip)), torch.ones(2).double(), atol=1e-3)
    clip += 1e-5 * pattern(64, 64, 4)
    assert lattice_peak(measure_clip(clip)).max() < 1.1


def flat_clip(luma):
    return torch.tensor(luma)[:, None, None, None].expand(-1, 64, 64, 3)


def of_luma(luma):
    """The statistics that matter of a flat clip, without measuring it."""
    series = torch.as_tensor(luma, dtype=torch.float64)
    energy = torch.cat((torch.tensor([math.nan]), series.diff().square()))
    return ClipStatistics(series, series, series, energy, series)


def test_a_brightness_step_per_segment_is_a_pulse():
    steps = [0.3 + 0.02 * math.ceil(frame / 12) for frame in range(81)]
    statistics = measure_clip(flat_clip(steps))
    assert statistics.luma.tolist() == pytest.approx(steps, abs=1e-6)
    assert luma_pulse(statistics, 12) > 0.9
    assert all(luma_pulse(statistics, lag) < 0.2 for lag in (2, 4, 6, 8, 10, 14))


def test_a_brightness_step_per_latent_frame_is_a_pulse_of_four():
    steps = [0.3 + 0.01 * math.ceil(frame / 4) for frame in range(81)]
    statistics = of_luma(steps)
    assert luma_pulse(statistics, 4) > 0.9 and luma_pulse(statistics, 6) < 0.2


def test_brightness_that_alternates_between_segments_is_a_pulse_of_the_opposite_sign():
    statistics = of_luma([0.3 + 0.02 * (math.ceil(frame / 12) % 2) for frame in range(81)])
    assert luma_pulse(statistics, 12) < -0.9


def test_a_slow_fade_and_unrelated_flicker_are_no_pulse():
    fade = of_luma([0.1 + 0.8 * (f / 80) ** 2 * (3 - 2 * f / 80) for f in range(81)])
    noise = torch.rand(241, generator=torch.Generator().manual_seed(0)).tolist()
    for statistics in (fade, of_luma(noise)):
        assert abs(luma_pulse(statistics, 12)) < 0.2
    still = of_luma([0.5] * 81)
    assert luma_pulse(still, 12) == luma_pulse(still, 4) == 0


def test_pulse_limits():
    statistics = of_luma([0.5] * 24)
    assert math.isnan(luma_pulse(statistics, 12))  # 23 changes
    with pytest.raises(ValueError, match="nearest valid value is 1"):
        luma_pulse(statistics, 0)


def test_segments_start_where_the_plan_says():
    assert segment_starts(81) == [13, 25, 37, 49, 61, 73]
    assert segment_starts(33) == [13, 25]
    assert segment_starts(33, 1) == [5, 9, 13, 17, 21, 25, 29]
    assert segment_starts(13) == segment_starts(1) == []


def pan(frames, easing="smooth"):
    photo = natural_photo(160, 240)
    return camera_motion(photo, 96, 64, frames, CameraMove(pan_x=0.3, zoom=1.3, easing=easing))


@pytest.mark.parametrize("easing", ["linear", "smooth"])
def test_a_pan_has_no_seam_and_a_jump_has(easing):
    clip = pan(33, easing)
    statistics = measure_clip(clip)
    for segment_frames in (2, 3):
        assert seam_energy(statistics, segment_frames) == pytest.approx(1, abs=0.15)
    clip[13:25] += 0.05  # the second segment of three latent frames
    statistics = measure_clip(clip.clamp(0, 1))
    assert seam_energy(statistics, 3) > 2 > seam_energy(statistics, 5)


def test_the_size_of_a_seam_is_known():
    """Steps of 2 among steps of 1 have four times the energy; inside a segment they are no seam."""
    energy = measure_clip(flat_clip([0.4, 0.45, 0.4])).change_energy
    assert math.isnan(energy[0]) and energy[1:].tolist() == pytest.approx([0.05**2] * 2, rel=1e-4)

    def seam(larger):
        return seam_energy(of_luma(np.cumsum([0.02 if frame in larger else 0.01 for frame in range(37)])))

    assert seam(()) == pytest.approx(1)
    assert seam(segment_starts(37)) == pytest.approx(4, rel=0.05)
    assert seam([start + 3 for start in segment_starts(37)]) == pytest.approx(1 / (1 + 3 / 12), rel=0.02)
    assert seam([1]) == pytest.approx(1)  # the step from the photo


def test_a_still_clip_has_no_motion_no_seam_and_no_growth():
    statistics = measure_clip(repeated(natural_photo(64, 96), 33))
    assert motion_amount(statistics) == 0
    assert seam_energy(statistics) == 1
    assert luma_pulse(statistics, 12) == 0


def test_motion_is_the_mean_change_of_luma_and_does_not_depend_on_size():
    assert motion_amount(measure_clip(flat_clip([0.2, 0.3, 0.2]))) == pytest.approx(0.1)
    photo = natural_photo(512, 768)
    move = CameraMove(pan_x=0.05, easing="linear")
    small, large = (
        motion_amount(measure_clip(camera_motion(photo, width, height, 3, move)))
        for width, height in ((288, 192), (576, 384))
    )
    assert large == pytest.approx(small, rel=0.1)


def test_noise_is_hardly_motion():
    noise = torch.randn(3, 720, 960, 3, generator=torch.Generator().manual_seed(0))
    assert motion_amount(measure_clip((0.5 + 0.05 * noise).clamp(0, 1))) < 0.05 / 4


def test_a_stream_gives_what_the_whole_gives_and_holds_two_frames():
    clip, truth = pan(6), pan(6, "linear")
    alive = []

    def stream(frames):
        for frame in frames:
            alive.append(frame.clone())
            yield alive[-1]
            alive.clear()

    done = []
    whole = measure_clip(clip, truth)
    streamed = measure_clip(stream(clip), iter(truth), done.append)
    for field in fields(whole):
        a, b = getattr(whole, field.name), getattr(streamed, field.name)
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), field.name
        assert len(a) == 6 and a.dtype == torch.float64
    assert done == list(range(1, 7))


def test_half_precision_is_measured_in_single():
    clip = natural_photo()
    half = measure_clip(clip.half())
    assert half.sharpness.item() == pytest.approx(measure_clip(clip).sharpness.item(), rel=1e-2)


def test_one_frame_is_a_clip():
    statistics = measure_clip(natural_photo())
    assert laplacian_ratio(statistics).tolist() == [1]
    assert lattice_peak(statistics).shape == (1,)
    figures = [
        laplacian_slope(statistics),
        luma_pulse(statistics, 4),
        seam_energy(statistics),
        motion_amount(statistics),
    ]
    assert all(math.isnan(figure) for figure in figures)


FRAMES = torch.full((3, 64, 64, 3), 0.5)
NOT_A_NUMBER = torch.cat((FRAMES[:2], torch.full((1, 64, 64, 3), math.nan)))


@pytest.mark.parametrize(
    ("frames", "truth", "words"),
    [
        (NOT_A_NUMBER, None, "values from nan to nan"),
        (FRAMES, NOT_A_NUMBER, "values from nan to nan"),
        (FRAMES * 255, None, "from 127.5 to 127.5, but they must be in 0..1"),
        ((FRAMES * 255).byte(), None, "torch.uint8 of shape [64, 64, 3]"),
        (FRAMES[None], None, "shape [3, 64, 64, 3]"),
        (
            FRAMES[:, :48],
            None,
            "64x48, but both sides must be at least 64; the nearest valid size is 64x64",
        ),
        (
            [FRAMES[0], torch.zeros(64, 96, 3)],
            None,
            "96x64, but all frames must have the size of the first",
        ),
        (FRAMES, torch.zeros(3, 96, 64, 3), "64x96, but all frames must have the size"),
        (FRAMES, FRAMES[:2], "The truth ends after 2 frames"),
        (FRAMES[:1], FRAMES, "The clip ends after 1 frames"),
        (FRAMES[:0], None, "no frames"),
    ],
)
def test_invalid_frames_are_refused_in_one_sentence(frames, truth, words):
    with pytest.raises(ValueError) as error:
        measure_clip(frames, truth)
    assert words in str(error.value)
