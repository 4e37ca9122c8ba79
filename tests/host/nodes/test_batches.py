"""A batch of photos is what its photos are one by one, with the seeds seed, seed + 1, and so on."""

import logging

import comfy.utils
import pytest
import torch
from swifti2v.nodes.comfyui import sampling
from swifti2v.nodes.pipeline import stage_one as motion_making

LAST_SEED = 2**64 - 1


@pytest.fixture(scope="module")
def photos(photo):
    """Three different photos, ``[3, 96, 128, 3]``."""
    flips = torch.cat((photo, photo.flip(1), photo.flip(2) * 0.7))
    return torch.nn.functional.interpolate(flips.movedim(-1, 1), (96, 128), mode="area").movedim(1, -1)


def one_by_one(run, node_id, photos, seed, **options):
    """Outputs of single runs, as lists."""
    runs = [
        run(node_id, image=photo, seed=(seed + index) % 2**64, **options)
        for index, photo in enumerate(photos.split(1))
    ]
    return list(zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (3, {}),
        (LAST_SEED, {}),
        (3, {"reshift_steps": 1, "fit": "pad"}),
        (3, {"sampler_name": "euler_ancestral", "cfg": 3.0}),  # draws noise of its own in every step
    ],
)
def test_two_experts(run, experts, vae16, photos, text, options, seed):
    options = {
        "model_high_noise": experts[0],
        "model_low_noise": experts[1],
        "vae": vae16,
        "positive": text[0],
        "negative": text[1],
        "width": 64,
        "height": 48,
        "frames": 9,
        **options,
    }
    frames, latent = run("SwiftI2V_MotionSampler", image=photos, seed=seed, **options)
    singles, latents = one_by_one(run, "SwiftI2V_MotionSampler", photos, seed, **options)
    assert frames.shape == (27, 48, 64, 3)
    assert torch.equal(frames, torch.cat(singles))
    assert latent["samples"].shape == (3, 16, 3, 6, 8)
    assert torch.equal(latent["samples"], torch.cat([single["samples"] for single in latents]))


def test_a_clean_frame(run, stage_one, vae, photos):
    options = {"model_high_noise": stage_one, "vae": vae, "width": 128, "height": 64, "frames": 5}
    frames, latent = run("SwiftI2V_MotionSampler", image=photos, seed=1, **options)
    singles, latents = one_by_one(run, "SwiftI2V_MotionSampler", photos, 1, **options)
    assert torch.allclose(frames, torch.cat(singles), rtol=0, atol=2e-6)  # ComfyUI decodes them together
    assert torch.equal(latent["samples"], torch.cat([single["samples"] for single in latents]))


def test_the_same_photo_twice_moves_in_two_ways(run, stage_one, vae, photos):
    options = {"model_high_noise": stage_one, "vae": vae, "width": 128, "height": 64, "frames": 5}
    latent = run("SwiftI2V_MotionSampler", image=photos[:1].repeat(2, 1, 1, 1), **options)[1]["samples"]
    assert torch.equal(latent[0, :, 0], latent[1, :, 0])
    assert (latent[0, :, 1] - latent[1, :, 1]).abs().mean() > 0.01


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar is told: (value, total)."""
    calls = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: calls.append((value, total))
    )
    return calls


def rises(calls, total):
    values = [value for value, of in calls if of == total]
    return values == sorted(values) and values[-1] == total


def test_experts_are_loaded_once_and_one_bar_shows_all_clips(
    pack, run, experts, vae16, photos, shown, monkeypatch
):
    used = []
    guider = sampling.motion_guider

    def spy(model, *args):
        used.append(experts.index(model))
        return guider(model, *args)

    monkeypatch.setattr(motion_making, "motion_guider", spy)
    high, low = experts
    options = {"model_high_noise": high, "model_low_noise": low, "vae": vae16, "width": 32, "height": 32}
    run("SwiftI2V_MotionSampler", image=photos, frames=5, **options)
    assert used == [0, 0, 0, 1, 1, 1]
    assert rises(shown, 12)


@pytest.mark.parametrize("seed", [3, LAST_SEED])
def test_camera_motion(run, photos, shown, seed):
    options = {"width": 64, "height": 32, "frames": 9, "sway": 0.02}
    frames = run("SwiftI2V_CameraMotion", image=photos, seed=seed, **options)[0]
    assert rises(shown, 27)
    singles = one_by_one(run, "SwiftI2V_CameraMotion", photos, seed, **options)[0]
    assert frames.shape == (27, 32, 64, 3)
    assert torch.equal(frames, torch.cat(singles))
    same = run("SwiftI2V_CameraMotion", image=photos[:1].repeat(2, 1, 1, 1), seed=seed, **options)[0]
    assert (same[:9] - same[9:]).abs().max() > 0.01  # another seed, another sway


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("count", [9, 6])
def test_anchor_encode(run, vae, streaming_vae, photos, shown, monkeypatch, caplog, streamed, count):
    """Also of clips with another number of frames than asked, and with one that cannot stream."""
    whole, encode = [], vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: whole.append(len(pixels)) or encode(pixels))
    if streamed:
        vae = streaming_vae
    motion = torch.rand(3 * count, 24, 32, 3, generator=torch.Generator().manual_seed(0))
    options = {"vae": vae, "width": 128, "height": 64, "frames": 9, "color_match": True}
    with caplog.at_level(logging.WARNING):
        z_ref = run("SwiftI2V_AnchorEncode", image=photos, motion=motion, **options)[0]["samples"]
    assert whole == ([] if streamed else [9, 1, 9, 1, 9, 1])
    assert [record.args for record in caplog.records] == ([] if count == 9 else [(count, 9)])
    assert rises(shown, 27)
    singles = [
        run("SwiftI2V_AnchorEncode", image=photo, motion=clip, **options)[0]["samples"]
        for photo, clip in zip(photos.split(1), motion.split(count), strict=True)
    ]
    assert z_ref.shape == (3, 48, 3, 4, 8)
    assert torch.equal(z_ref, torch.cat(singles))


@pytest.mark.parametrize("kind", ["concat", "plain"])
@pytest.mark.parametrize(("sampler", "seed"), [("euler", 3), ("euler", LAST_SEED), ("euler_ancestral", 3)])
def test_segment_sampler(run, stage_two, stage_one, make_latent, text, kind, sampler, seed):
    model = stage_two if kind == "concat" else stage_one
    batch = make_latent(8, batch=2)["samples"]
    options = {"model": model, "positive": text[0], "denoise": 1.0 if kind == "concat" else 0.5}
    options["sampler_name"] = sampler
    both = run("SwiftI2V_SegmentSampler", z_ref={"samples": batch}, seed=seed, **options)[0]["samples"]
    alone = [
        run("SwiftI2V_SegmentSampler", z_ref={"samples": clip}, seed=(seed + index) % 2**64, **options)[0]
        for index, clip in enumerate(batch.split(1))
    ]
    alone = torch.cat([single["samples"] for single in alone])
    assert torch.equal(both, alone)
    # With the first clip's noise the second one is another.
    other = run("SwiftI2V_SegmentSampler", z_ref={"samples": batch[1:]}, seed=seed, **options)[0]
    assert (other["samples"] - both[1:]).abs().max() > 0.01


def test_a_clip_picked_from_a_batch_keeps_its_noise(pack, make_latent):
    import nodes as host_nodes

    batch = make_latent(3, batch=3)
    noise = sampling.SeededNoise(3)
    picked = host_nodes.LatentFromBatch().frombatch(batch, 1, 2)[0]
    assert torch.equal(noise.generate_noise(picked), noise.generate_noise(batch)[1:])
    single = sampling.SeededNoise(4).generate_noise({"samples": batch["samples"][1:2]})
    assert torch.equal(noise.generate_noise(batch)[1:2], single)


def test_the_advanced_sampler_takes_its_noise_as_it_is(pack, run, stage_two, text, make_latent):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    class Shifted(Noise_RandomNoise):
        def generate_noise(self, latent):
            return super().generate_noise(latent).flip(0)

    batch = make_latent(8, batch=2)
    guider = comfy.samplers.CFGGuider(stage_two)
    guider.set_conds(*text)
    options = {
        "guider": guider,
        "sampler": comfy.samplers.sampler_object("euler"),
        "sigmas": torch.tensor([1.0, 0.8, 0.0]),
    }
    flipped = {"samples": batch["samples"].flip(0)}
    one = run("SwiftI2V_SegmentSamplerAdvanced", noise=Noise_RandomNoise(3), z_ref=batch, **options)[0]
    two = run("SwiftI2V_SegmentSamplerAdvanced", noise=Shifted(3), z_ref=flipped, **options)[0]
    assert torch.equal(one["samples"], two["samples"].flip(0))
