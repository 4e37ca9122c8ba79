"""Noise reshifting by hand: sizes, noise levels, the steps of each expert, and scaling the latent down."""

from itertools import pairwise

import pytest
import torch

from swifti2v_core.images import fit_frames
from swifti2v_core.sigmas import even_timesteps, flow_sigmas, shift_sigma
from swifti2v_core.stage_one import two_sizes

FEW = flow_sigmas(even_timesteps(4), 5.0)
"""1, 0.9375, 0.8333, 0.625, 0: the two experts change after the second step."""

LARGE, SMALL = (960, 528), (640, 352)


def values(sigmas):
    return [round(float(sigma), 6) for sigma in sigmas]


@pytest.mark.parametrize(
    ("size", "scale", "multiple", "large"),
    [
        ((640, 352), 1.5, 16, (960, 528)),
        ((640, 352), 1.5, 32, (960, 544)),  # 528 lies halfway between 512 and 544; ties go up
        ((640, 352), 2.0, 32, (1280, 704)),
        ((64, 48), 1.5, 16, (96, 80)),
    ],
)
def test_the_large_size_is_scaled_and_snapped(size, scale, multiple, large):
    assert two_sizes.large_size(*size, scale, multiple) == large


@pytest.mark.parametrize(
    ("scale", "multiple", "nearest"), [(1.0, 16, 1.03), (1.04, 32, 1.05), (0.5, 32, 1.05)]
)
def test_a_scale_that_enlarges_nothing_names_the_nearest_that_does(scale, multiple, nearest):
    with pytest.raises(ValueError, match=f"reshift_scale is {scale:g}.* valid value is {nearest}\\."):
        two_sizes.large_size(640, 352, scale, multiple)
    width, height = two_sizes.large_size(640, 352, nearest, multiple)
    assert width > 640 and height == 352 + multiple


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_both_sizes_share_the_steps_and_end_clean(steps):
    large, small = two_sizes.reshift_size_steps(FEW, steps, LARGE, SMALL)
    assert (large.width, large.height, small.width, small.height) == (960, 528, 640, 352)
    assert values(large.sigmas) == [*values(FEW)[:steps], 0.0]
    assert values(small.sigmas) == values(FEW)[steps:]
    assert len(large.sigmas) + len(small.sigmas) - 2 == 4


@pytest.mark.parametrize(("steps", "nearest"), [(4, 3), (9, 3), (0, 1), (-1, 1)])
def test_both_sizes_need_a_step(steps, nearest):
    with pytest.raises(ValueError, match=f"reshift_steps is {steps}, .* has 4 steps .* is {nearest}\\."):
        two_sizes.reshift_size_steps(FEW, steps, LARGE, SMALL)


def test_one_step_cannot_be_shared():
    with pytest.raises(ValueError, match=r"reshift_steps is 1, .* has 1 steps .* is 0"):
        two_sizes.reshift_size_steps(torch.tensor([1.0, 0.0]), 1, LARGE, SMALL)


def steps_at_scale(scale, sigmas):
    large = two_sizes.SizeSteps(round(640 * scale), round(320 * scale), sigmas)
    return large, two_sizes.SizeSteps(640, 320, sigmas)


def test_the_level_is_matched_as_by_hand():
    """r = 1/2: 0.5 * 0.9375 / (1 - 0.5 * 0.9375) = 0.882353."""
    sigmas = torch.tensor([1.0, 0.9375, 0.5, 0.0])
    matched = two_sizes.match_snr(*steps_at_scale(2, sigmas))
    assert values(matched.sigmas) == [1.0, 0.882353, 0.333333, 0.0]
    assert values(sigmas) == [1.0, 0.9375, 0.5, 0.0]
    assert (matched.width, matched.height) == (640, 320)


def test_the_same_size_keeps_every_level():
    assert torch.allclose(two_sizes.match_snr(*steps_at_scale(1, FEW)).sigmas, FEW, atol=1e-7)


@pytest.mark.parametrize("scale", [1.5, 2, 4])
def test_signal_to_noise_over_an_area_stays(scale):
    """The mean over an object of n pixels has the signal 1-s and the noise s / sqrt(n)."""
    matched = two_sizes.match_snr(*steps_at_scale(scale, FEW)).sigmas[1:-1]
    side = 30.0  # side of the object in the large clip
    before = (1 - FEW[1:-1]) / (FEW[1:-1] / side)
    after = (1 - matched) / (matched / (side / scale))
    assert torch.allclose(before, after, rtol=1e-5)


def test_matching_shifts_the_whole_schedule_once_more():
    large, small = two_sizes.reshift_size_steps(FEW, 1, (1280, 704), SMALL)
    expected = flow_sigmas(even_timesteps(4), 2.5)[1:]
    assert torch.allclose(two_sizes.match_snr(large, small).sigmas, expected, atol=1e-6)
    fine = flow_sigmas(even_timesteps(40), 5.0)
    matched = two_sizes.match_snr(*two_sizes.reshift_size_steps(fine, 10, LARGE, SMALL)).sigmas
    assert (matched[:-1] > matched[1:]).all() and matched[-1] == 0
    assert matched[0] == pytest.approx(float(shift_sigma(fine[10], 2 / 3)), abs=1e-6)


def described(expert_steps):
    return [(p.size_index, p.expert, values(p.sigmas), p.adds_noise) for p in expert_steps]


SCHEDULE = torch.tensor([1.0, 0.96, 0.92, 0.8, 0.4, 0.0])
"""At 0.9 the experts change after three of five steps."""

EXPERT_STEPS = {
    0: [(0, 0, [1.0, 0.96, 0.92, 0.8], True), (0, 1, [0.8, 0.4, 0.0], False)],
    1: [
        (0, 0, [1.0, 0.0], True),
        (1, 0, [0.96, 0.92, 0.8], True),
        (1, 1, [0.8, 0.4, 0.0], False),
    ],
    2: [
        (0, 0, [1.0, 0.96, 0.0], True),
        (1, 0, [0.92, 0.8], True),
        (1, 1, [0.8, 0.4, 0.0], False),
    ],
    3: [(0, 0, [1.0, 0.96, 0.92, 0.0], True), (1, 1, [0.8, 0.4, 0.0], True)],
    4: [
        (0, 0, [1.0, 0.96, 0.92, 0.8], True),
        (0, 1, [0.8, 0.0], False),
        (1, 1, [0.4, 0.0], True),
    ],
}
"""By reshift steps: before, at and after the change of the experts."""


@pytest.mark.parametrize("steps", EXPERT_STEPS)
def test_expert_steps_for_every_position_of_the_switch(steps):
    sizes = (
        two_sizes.reshift_size_steps(SCHEDULE, steps, LARGE, SMALL)
        if steps
        else [two_sizes.SizeSteps(*SMALL, SCHEDULE)]
    )
    expert_steps = two_sizes.plan_expert_steps(sizes, 0.9)
    assert described(expert_steps) == EXPERT_STEPS[steps]
    assert sum(len(each.sigmas) - 1 for each in expert_steps) == 5


def test_one_model_does_every_step():
    sizes = two_sizes.reshift_size_steps(SCHEDULE, 2, LARGE, SMALL)
    assert described(two_sizes.plan_expert_steps(sizes, 0.0)) == [
        (0, 0, [1.0, 0.96, 0.0], True),
        (1, 0, [0.92, 0.8, 0.4, 0.0], True),
    ]


def test_the_experts_are_chosen_by_the_noise_level_they_receive():
    """Matched, 0.92 becomes 0.885: the low-noise expert's."""
    large, small = two_sizes.reshift_size_steps(SCHEDULE, 2, LARGE, SMALL)
    expert_steps = two_sizes.plan_expert_steps([large, two_sizes.match_snr(large, small)], 0.9)
    assert [(each.size_index, each.expert, len(each.sigmas) - 1) for each in expert_steps] == [
        (0, 0, 2),
        (1, 1, 3),
    ]
    assert expert_steps[1].adds_noise


def toy_prediction(noisy, sigma, mean, variance):
    """The clean frames a perfect model of normally distributed data predicts, in closed form."""
    signal = 1 - sigma
    gain = signal * variance / (signal**2 * variance + sigma**2)
    return mean + gain * (noisy - signal * mean)


def euler(noisy, sigmas, mean, variance):
    for sigma, following in pairwise(sigmas):
        velocity = (noisy - toy_prediction(noisy, sigma, mean, variance)) / sigma
        noisy = noisy + (following - sigma) * velocity
    return noisy


@pytest.mark.parametrize("steps", [1, 3, 9])
def test_the_large_steps_end_at_the_prediction_of_the_last_one(steps):
    sigmas = flow_sigmas(even_timesteps(10), 5.0).double()
    noise, mean = torch.randn(5, dtype=torch.float64), torch.linspace(-1, 1, 5, dtype=torch.float64)
    large, _ = two_sizes.reshift_size_steps(sigmas, steps, LARGE, SMALL)
    assert large.sigmas.dtype == torch.float64
    before = euler(noise, sigmas[:steps], mean, 0.3)
    clean = toy_prediction(before, sigmas[steps - 1], mean, 0.3)
    assert torch.allclose(euler(noise, large.sigmas, mean, 0.3), clean, atol=1e-12)
    # The same from the latent at the switch: z - s * u with the velocity of the last step.
    switch = euler(noise, sigmas[: steps + 1], mean, 0.3)
    velocity = (before - clean) / sigmas[steps - 1]
    assert torch.allclose(switch - sigmas[steps] * velocity, clean, atol=1e-12)
    # Data that is one point is found exactly, from anywhere.
    assert torch.allclose(euler(noise, large.sigmas, mean, 0.0), mean, atol=1e-12)


def test_shrinking_keeps_constants_and_slopes_and_frames_apart():
    rows = torch.arange(12.0)[:, None] + 3 * torch.arange(18.0)
    latent = torch.stack([rows, torch.full((12, 18), 7.0)])[None, :, None].repeat(2, 1, 3, 1, 1)
    latent[1] *= 2
    latent[:, :, 2] = -1
    small = two_sizes.shrink(latent, 8, 12)
    assert small.shape == (2, 2, 3, 8, 12)
    # Centers of the small cells, in large cells: 1.5 (i + 0.5) - 0.5; borders have no neighbors.
    wanted = (1.5 * torch.arange(8) + 0.25)[:, None] + 3 * (1.5 * torch.arange(12) + 0.25)
    assert (small[0, 0, 0] - wanted)[1:-1, 1:-1].abs().max() < 0.125  # an eighth of a cell
    assert torch.allclose(small[0, 1, 1], torch.full((8, 12), 7.0))
    assert torch.allclose(small[1, :, :2], 2 * small[0, :, :2])
    assert (small[:, :, 2] + 1).abs().max() < 1e-6


def test_shrinking_to_half_is_the_triangle_by_hand():
    """Linear and antialiased, half the size has the weights 1, 3, 3, 1 (over 8) in each direction."""
    latent = torch.zeros(1, 1, 1, 8, 8)
    latent[..., 3, 2] = 64
    small = two_sizes.shrink(latent, 4, 4)[0, 0, 0]
    wanted = torch.outer(torch.tensor([0.0, 3, 1, 0]), torch.tensor([1.0, 3, 0, 0]))
    assert torch.allclose(small[:, 1:], wanted[:, 1:], atol=1e-5)


def test_shrinking_commutes_with_normalization():
    latent = torch.randn(1, 4, 2, 9, 12, generator=torch.Generator().manual_seed(0))
    scale, offset = torch.rand(4, 1, 1, 1) + 0.5, torch.randn(4, 1, 1, 1)
    one = two_sizes.shrink(latent * scale + offset, 6, 8)
    assert torch.allclose(one, two_sizes.shrink(latent, 6, 8) * scale + offset, atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_large_photo_shows_what_the_small_one_shows(fit):
    """96x80 has other proportions than 64x48; scaled down, both photos lie on each other."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 200), torch.linspace(0, 1, 480), indexing="ij")
    photo = torch.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.3 * x * y, torch.ones_like(x)], dim=-1)[None]
    sigmas = torch.tensor([1.0, 0.0])
    large, small = two_sizes.SizeSteps(96, 80, sigmas), two_sizes.SizeSteps(64, 48, sigmas)
    big = two_sizes.large_photo(photo, large, small, fit)
    assert big.shape == (1, 80, 96, 3)
    wanted = fit_frames(photo, 64, 48, fit)
    down = torch.nn.functional.interpolate(
        big.movedim(-1, 1), size=(48, 64), mode="bilinear", antialias=True
    ).movedim(1, -1)
    assert (down - wanted).abs().mean() < 0.02  # the edge of the bars may differ by half a pixel
    if fit == "crop":
        assert (down - wanted).abs().max() < 0.01
