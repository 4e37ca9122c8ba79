"""Stage II's samples: the content of windows, the frames in the loss, the origin of the draws."""

import pytest
import torch
from tiny_training import make_dataset, stage_two

from swifti2v_train.data.dataset import Dataset
from swifti2v_train.networks.sampling import euler, frame_timesteps, generate_segments
from swifti2v_train.tasks.stage_two import WindowSamples, window_losses

CPU = torch.device("cpu")


class Recorder:
    """A network that records its inputs and returns a given prediction."""

    def __init__(self, predict=lambda latents: torch.zeros_like(latents[:, :48])):
        self.predict, self.calls = predict, []

    def __call__(self, latents, timesteps, text, positions, clean):
        self.calls.append((latents, timesteps, text, [tuple(p) for p in positions], list(clean)))
        return self.predict(latents)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(make_dataset(tmp_path_factory.mktemp("data")))


def samples(dataset, **settings):
    plain = {"reference_dropout": 0, "anchor_dropout": 0, "neighbor_noise": 0, "rollout_share": 0}
    return WindowSamples(dataset, stage_two("", **{**plain, **settings}), 16)


def find(drawn, wanted):
    """The first step whose first sample meets a condition."""
    return next(
        (step, sample)
        for step in range(200)
        for sample in [drawn.sample(Recorder(), step, 0, CPU)]
        if wanted(sample)
    )


def test_a_window_is_cut_as_in_inference(dataset):
    _, sample = find(samples(dataset), lambda s: s.clip == 0 and s.segment.index == 1)
    assert sample.segment.window == (0, 3, 4, 5, 6)
    truth = dataset.latents(0)
    assert torch.equal(sample.window, truth[:, [0, 3, 4, 5, 6]])
    references = [dataset.reference(0, variant)[:, [0, 3, 4, 5, 6]] for variant in (0, 1)]
    assert any(torch.equal(sample.references, reference) for reference in references)

    network = Recorder()
    window_losses(network, [sample])
    (latents, timesteps, text, positions, clean) = network.calls[0]
    sigma = float(sample.sigma)
    assert (positions, clean) == ([(0, 3, 4, 5, 6)], [2])
    assert timesteps == [[0, 0, *[pytest.approx(1000 * sigma)] * 3]]
    assert torch.equal(text[0], dataset.text(0, 16))
    assert torch.equal(latents[0, :48, :2], sample.window[:, :2])
    assert torch.equal(latents[0, 48:, :2], sample.window[:, :2])  # a clean frame's own latent
    assert torch.equal(latents[0, 48:, 2:], sample.references[:, 2:])
    mixed = (1 - sigma) * sample.window[:, 2:] + sigma * sample.noise[:, 2:]
    torch.testing.assert_close(latents[0, :48, 2:], mixed)


def test_the_loss_covers_the_noisy_frames_only(dataset):
    _, sample = find(samples(dataset), lambda s: s.segment.index == 1)
    target = sample.noise - sample.window

    def wrong_on_clean_frames(latents):
        velocity = target[None].clone()
        velocity[:, :, :2] += 7
        return velocity

    assert float(window_losses(Recorder(wrong_on_clean_frames), [sample])) == 0
    shifted = Recorder(lambda latents: target[None] + 3)
    assert float(window_losses(shifted, [sample])) == pytest.approx(9, rel=1e-5)


def test_samples_of_a_step_have_one_shape_and_short_segments_count_their_own_frames(dataset):
    """The clip of 9 latent frames ends in a segment of 2, whose window has one more neighbor."""
    drawn = samples(dataset)
    step, short = find(drawn, lambda s: s.clip == 0 and s.segment.index == 2)
    assert (short.segment.clean, len(short.segment.window)) == (3, 5)
    others = [drawn.sample(Recorder(), step, number, CPU) for number in range(6)]
    assert {sample.window.shape for sample in others} == {short.window.shape}
    target = torch.stack([sample.noise - sample.window for sample in others])
    for number, sample in enumerate(others):
        wrong = target.clone()
        wrong[number, :, : sample.segment.clean] += 1
        assert torch.equal(window_losses(Recorder(lambda _, w=wrong: w), others), torch.zeros(6))
        wrong[number, :, sample.segment.clean] += 1
        assert window_losses(Recorder(lambda _, w=wrong: w), others)[number] > 0


def test_a_sample_depends_on_seed_step_and_number_alone(dataset):
    drawn, again = samples(dataset), samples(dataset)
    for other in (7, 3):  # what was drawn before does not matter
        again.sample(Recorder(), other, 1, CPU)
    one, same = (which.sample(Recorder(), 5, 2, CPU) for which in (drawn, again))
    assert torch.equal(one.noise, same.noise) and one.sigma == same.sigma and one.segment == same.segment
    differing = [
        drawn.sample(Recorder(), 5, 3, CPU),
        drawn.sample(Recorder(), 6, 2, CPU),
        samples(dataset, seed=1).sample(Recorder(), 5, 2, CPU),
    ]
    assert all(sample.sigma != one.sigma for sample in differing)


def test_a_dropped_reference_is_zero_on_the_noisy_frames(dataset):
    _, sample = find(samples(dataset, reference_dropout=1), lambda s: s.segment.index == 1)
    network = Recorder()
    window_losses(network, [sample])
    latents = network.calls[0][0]
    assert not latents[0, 48:, 2:].any()
    assert torch.equal(latents[0, 48:, :2], sample.window[:, :2])


def test_a_dropped_anchor_is_left_out(dataset):
    _, sample = find(samples(dataset, anchor_dropout=1), lambda s: s.clip == 0 and s.segment.index == 1)
    assert (sample.segment.window, sample.segment.times, sample.segment.clean) == ((3, 4, 5, 6),) * 2 + (1,)
    assert torch.equal(sample.window, dataset.latents(0)[:, 3:7])


def test_neighbors_are_mixed_with_noise_and_the_anchor_is_not(dataset):
    wanted = lambda s: s.clip == 0 and s.segment.index == 1  # noqa: E731
    step, clean = find(samples(dataset), wanted)
    noisy = samples(dataset, neighbor_noise=0.5).sample(Recorder(), step, 0, CPU)
    assert torch.equal(noisy.window[:, [0, 2, 3, 4]], clean.window[:, [0, 2, 3, 4]])
    change = noisy.window[:, 1] - clean.window[:, 1]
    assert change.std() > 0
    # (1 - s) x + s n keeps the mean of zero and has the variance (1 - s)^2 + s^2, both of variance 1.
    assert noisy.window[:, 1].std() < clean.window[:, 1].std()


def test_rollout_neighbors_are_generated_from_the_reference(dataset):
    """With a network whose velocity leads to its reference channels, the neighbors are the reference."""
    drawn = samples(dataset, rollout_share=1, rollout_steps=1)

    def to_reference(latents):
        return latents[:, :48] - latents[:, 48:]  # at sigma 1: noise - reference

    for step in range(20):
        sample = drawn.sample(Recorder(to_reference), step, 0, CPU)
        assert sample.segment.index >= 1
        neighbor = sample.segment.window[1]
        variants = [dataset.reference(sample.clip, variant)[:, neighbor] for variant in (0, 1)]
        assert any(torch.allclose(sample.window[:, 1], variant, atol=1e-5) for variant in variants)
        # What is to be made is still the truth.
        noisy = list(sample.segment.noisy)
        assert torch.equal(sample.window[:, sample.segment.clean :], dataset.latents(sample.clip)[:, noisy])


def test_every_sample_of_a_step_runs_the_network_equally_often(dataset):
    drawn = samples(dataset, rollout_share=0.5, rollout_steps=3, rollout_segments=1)
    counts = []
    for step in range(10):
        networks = [Recorder() for _ in range(4)]
        for number, network in enumerate(networks):
            drawn.sample(network, step, number, CPU)
        assert len({len(network.calls) for network in networks}) == 1
        counts.append(len(networks[0].calls))
    assert set(counts) == {0, 3}


def test_clips_too_short_for_a_rollout_are_refused(dataset):
    with pytest.raises(ValueError, match="rollout_segments is 3, but the longest clip has 3 segments"):
        samples(dataset, rollout_share=0.5, rollout_segments=3)


def test_windows_of_several_lengths_do_not_share_a_forward(tmp_path):
    mixed = Dataset(make_dataset(tmp_path, lengths=(9, 3)))
    with pytest.raises(ValueError, match="micro_batch is 2, but the windows of the clips have several"):
        samples(mixed, micro_batch=2)
    assert samples(mixed, micro_batch=1)


def test_euler_walks_a_straight_path_exactly():
    noise, truth = torch.randn(2, 48, 3, 4, 4), torch.randn(2, 48, 3, 4, 4)
    sigmas = torch.tensor([1.0, 0.9, 0.3, 0.0])
    result = euler(lambda latents, sigma: noise - truth, noise, sigmas)
    torch.testing.assert_close(result, truth)


def test_timesteps_of_clean_frames_are_zero():
    made = frame_timesteps(torch.tensor([0.5, 0.25]), [2, 0], 3)
    assert made == [[0, 0, 500], [250, 250, 250]]


def test_generating_all_segments_replaces_everything_but_the_photo(dataset):
    drawn = samples(dataset)
    truth, reference = dataset.latents(0)[None], dataset.reference(0, 1)[None]
    network = Recorder(lambda latents: latents[:, :48] - latents[:, 48:])
    made = generate_segments(
        network, truth, reference, torch.zeros(1, 8, 16), torch.randn(truth.shape), drawn.plans[0], steps=1
    )
    assert torch.equal(made[:, :, :1], truth[:, :, :1])
    torch.testing.assert_close(made[:, :, 1:], reference[:, :, 1:])
    # Later windows see generated neighbors.
    assert torch.equal(network.calls[1][0][0, :48, 1], made[0, :, 3])
