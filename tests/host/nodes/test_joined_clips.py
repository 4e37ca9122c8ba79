"""Clips that continue another one or return to the photo, against the host's own nodes."""

import pytest
import torch

import nodes as host_nodes

WIDTH, HEIGHT, FRAMES = 64, 48, 13


def resized(frames, width, height):
    return torch.nn.functional.interpolate(frames.movedim(-1, 1), (height, width), mode="area").movedim(
        1, -1
    )


@pytest.fixture(scope="module")
def small(photo):
    return resized(photo, WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def clip(small):
    """A clip of 7 frames that moves to the right."""
    return torch.cat([small.roll(frame, dims=2) for frame in range(7)])


@pytest.fixture
def a14b(run, experts, vae16, small, text):
    def motion(**options):
        given = {
            "model_high_noise": experts[0],
            "model_low_noise": experts[1],
            "vae": vae16,
            "image": small,
            "positive": text[0],
            "negative": text[1],
            "width": WIDTH,
            "height": HEIGHT,
            "frames": FRAMES,
            "seed": 5,
        }
        return run("SwiftI2V_MotionSampler", **{**given, **options})

    return motion


def host_a14b(experts, vae, text, start, end):
    """WanFirstLastFrameToVideo and two KSamplerAdvanced, two of four steps each."""
    from comfy_extras.nodes_wan import WanFirstLastFrameToVideo

    with torch.inference_mode():
        positive, negative, latent = WanFirstLastFrameToVideo.execute(
            *text, vae, WIDTH, HEIGHT, FRAMES, 1, start_image=start, end_image=end
        ).args
        options, sampler = (1.0, "euler", "simple", positive, negative), host_nodes.KSamplerAdvanced()
        half = sampler.sample(experts[0], "enable", 5, 4, *options, latent, 0, 2, "enable")[0]
        return sampler.sample(experts[1], "disable", 5, 4, *options, half, 2, 4, "disable")[0]["samples"]


@pytest.mark.parametrize(("continued", "loop"), [(True, False), (False, True), (True, True)])
def test_a14b_equals_the_hosts_start_and_end_frames(
    a14b, experts, vae16, small, text, clip, continued, loop
):
    given = clip.clone()
    frames, latent = a14b(continue_from=clip if continued else None, loop=loop)
    start = clip[-5:] if continued else small
    theirs = host_a14b(experts, vae16, text, start, small if loop else None)
    assert (latent["samples"] - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    known = 5 if continued else 0
    with torch.inference_mode():
        assert torch.allclose(frames, vae16.decode(theirs)[0][known:], atol=1e-3)
    assert len(frames) == FRAMES - known
    assert torch.equal(clip, given)


def test_ti2v_keeps_the_frames_it_continues_from(run, stage_one, vae, photo):
    wide = resized(photo, 320, 160)
    clip = torch.cat([wide.roll(4 * frame, dims=2) for frame in range(9)])
    frames, latent = run(
        "SwiftI2V_MotionSampler",
        model_high_noise=stage_one,
        vae=vae,
        image=photo,
        continue_from=clip,
        width=320,
        height=160,
        frames=9,
    )
    with torch.inference_mode():
        known = vae.encode(clip[-5:])
        seen = vae.decode(known)[0]
    assert torch.allclose(latent["samples"][:, :, :2], known, atol=1e-5)
    assert frames.shape == (4, 160, 320, 3)
    # The first new frame follows the last given one more closely than any before it.
    distances = [float((frames[0] - frame).abs().mean()) for frame in seen]
    assert distances[-1] == min(distances) and distances[-1] < 0.5 * distances[0], distances


def test_later_chunks_of_a_continued_clip_know_only_what_was_made(a14b, clip, vae16, pack, monkeypatch):
    from swifti2v.nodes.pipeline import stage_one

    starts, original = [], stage_one.MotionSampling._starts

    def spy(self, references, made, chunk):
        made = original(self, references, made, chunk)
        starts.append(made[0].conditions)
        return made

    monkeypatch.setattr(stage_one.MotionSampling, "_starts", spy)
    options = {"frames": 21, "chunk_frames": 13, "overlap_frames": 8}
    frames, latent = a14b(continue_from=clip, **options)
    first, second = starts
    gray = torch.full((8, HEIGHT, WIDTH, 3), 0.5)
    with torch.inference_mode():
        encoded = vae16.encode(torch.cat((clip[-5:], gray)))
    assert torch.allclose(first["concat_latent_image"], encoded, atol=1e-5)
    assert first["concat_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert torch.equal(second["concat_latent_image"][:, :, 2:], first["concat_latent_image"][:, :, 2:])
    assert second["concat_mask"][0, 0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert len(frames) == 16 and latent["samples"].shape[2] == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loop": True, "chunk_frames": 9}, ("loop is on", "chunks", "chunk_frames to 0")),
        ({"continue_from": torch.zeros(3, 8, 8, 3)}, ("has 3 frames", "overlap_frames is 4")),
        ({"continue_from": torch.zeros(9, 8, 8, 3), "image": torch.zeros(2, 8, 8, 3)}, ("batch of 2",)),
        ({"continue_from": torch.zeros(9, 8, 8, 3), "overlap_frames": 16}, ("below frames", "is 12")),
    ],
)
def test_refused_before_anything_is_encoded(a14b, vae16, monkeypatch, options, words):
    encoded = []
    monkeypatch.setattr(vae16, "encode", encoded.append)
    with pytest.raises(ValueError) as error:
        a14b(**options)
    assert all(word in str(error.value) for word in words), error.value
    assert not encoded


def test_ti2v_cannot_return_to_the_photo(run, stage_one, vae, photo):
    options = {"model_high_noise": stage_one, "vae": vae, "image": photo, "width": 64, "height": 64}
    with pytest.raises(ValueError, match=r"loop is on, but Wan2\.2-TI2V-5B .* load Wan2\.2-I2V-A14B\."):
        run("SwiftI2V_MotionSampler", **options, frames=5, loop=True)
