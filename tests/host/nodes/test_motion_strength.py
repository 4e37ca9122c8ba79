"""The motion strength of Stage I: the condition that the model is given, and who takes it."""

import pytest
import torch
from comfy.ldm.wan.model import WanModel

WIDTH, HEIGHT, FRAMES = 64, 48, 9
CONDITION = slice(20, 36)
"""Channels of the concatenated latent: behind 16 noisy ones and 4 of the mask."""


@pytest.fixture
def a14b(run, experts, vae16, photo, text):
    """Run Stage I with two experts."""

    def motion(**options):
        given = {
            "model_high_noise": experts[0],
            "model_low_noise": experts[1],
            "vae": vae16,
            "image": photo,
            "positive": text[0],
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES,
        }
        return run("SwiftI2V_MotionSampler", **{**given, **options})

    return motion


@pytest.fixture
def conditions(pack, monkeypatch):
    """What the network is given beside the noisy latent, one tensor per forward."""
    seen, forward = [], WanModel.forward_orig

    def spy(self, x, *args, **kwargs):
        seen.append(x[:, CONDITION].clone())
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", spy)
    return seen


def deviations(frames):
    return frames - frames.mean((-2, -1), keepdim=True)


def test_every_step_of_both_experts_gets_the_amplified_condition(a14b, conditions):
    plain = a14b()[1]["samples"]
    strong = a14b(motion_strength=1.5)[1]["samples"]
    before, after = conditions[:4], conditions[4:]
    assert len(after) == 4
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:, :, :1], old[:, :, :1])
        expected = 1.5 * deviations(old[:, :, 1:] - old[:, :, :1])
        assert expected.abs().max() > 0.01
        assert torch.allclose(deviations(new[:, :, 1:] - new[:, :, :1]), expected, atol=1e-5)
        assert torch.allclose(new.mean((-2, -1)), old.mean((-2, -1)), atol=1e-5)
    assert not torch.allclose(plain, strong, atol=1e-3)


def test_later_chunks_differ_from_their_last_known_frame(a14b, conditions):
    options = {"frames": 21, "chunk_frames": 13, "overlap_frames": 8, "steps": 1, "model_low_noise": None}
    a14b(**options, motion_strength=1.5)
    first, second = conditions
    # The same gray frames in the clip's first chunk, from which the others take theirs.
    conditions.clear()
    a14b(**options)
    gray = conditions[0][:, :, 2:]
    known = second[:, :, 1:2]
    expected = 1.5 * deviations(gray - known)
    assert torch.allclose(deviations(second[:, :, 2:] - known), expected, atol=1e-5)
    assert not torch.allclose(second[:, :, 2:], first[:, :, 2:], atol=1e-3)


def test_ti2v_refuses_what_would_do_nothing(run, stage_one, vae, photo, monkeypatch):
    encoded = []
    monkeypatch.setattr(vae, "encode", encoded.append)
    options = {"model_high_noise": stage_one, "vae": vae, "image": photo, "width": 64, "height": 64}
    with pytest.raises(ValueError, match=r"motion_strength is 1\.3, .* nearest valid value .* is 1\.$"):
        run("SwiftI2V_MotionSampler", **options, frames=5, motion_strength=1.3)
    assert not encoded
