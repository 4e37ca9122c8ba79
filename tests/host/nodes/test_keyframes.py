"""Keyframes: more photos that enter windows as clean frames."""

import pytest
import torch
from swifti2v.nodes.pipeline import stage_two as redrawing

KEYFRAME_TIMES = "swifti2v_keyframe_times"


@pytest.fixture
def motion():
    return torch.rand(13, 48, 64, 3, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def keyframes():
    return torch.rand(2, 96, 128, 3, generator=torch.Generator().manual_seed(5))


def encoded(run, vae, photo, motion, **options):
    size = {"width": 128, "height": 96, "frames": 13}
    return run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, **size, **options)


def test_the_reference_passes_through_them(run, vae, photo, motion, keyframes):
    """What is encoded is the clip with the keyframes put in, and a still clip of each keyframe."""
    z_ref, stills, *_ = encoded(run, vae, photo, motion, keyframes=keyframes, keyframe_times="6, 12")
    plain = encoded(run, vae, photo, motion)[0]["samples"]
    assert stills[KEYFRAME_TIMES] == [2, 3] and stills["samples"].shape == (1, 48, 2, 6, 8)
    assert torch.equal(z_ref["samples"][:, :, 0], plain[:, :, 0])
    assert not torch.equal(z_ref["samples"][:, :, 2:], plain[:, :, 2:])
    for index, keyframe in enumerate(keyframes.split(1)):
        still = vae.encode(keyframe.expand(5, -1, -1, -1))[:, :, 1:]
        assert (stills["samples"][:, :, index : index + 1] - still).abs().max() < 1e-5


def test_without_keyframes_nothing_is_passed_on(run, vae, photo, motion):
    assert encoded(run, vae, photo, motion)[1] is None


def keyframe_latent(times, height=6, width=8, seed=9):
    samples = torch.randn(1, 48, len(times), height, width, generator=torch.Generator().manual_seed(seed))
    return {"samples": samples, KEYFRAME_TIMES: times}


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
@pytest.mark.parametrize("kind", ["concat", "plain"])
def test_windows_hold_them_clean_at_their_times(
    pack, run, stage_one, stage_two, z_ref, text, monkeypatch, kind, context
):
    model, seen = {"concat": stage_two, "plain": stage_one}[kind], []
    aim, sample = redrawing.aim_guider, redrawing.sample

    def spy_aim(clone, guider, view, concat):
        seen.append([view.positions, view.clean, concat])
        return aim(clone, guider, view, concat)

    def spy_sample(guider, noise, window, *args, **kwargs):
        result = sample(guider, noise, window, *args, **kwargs)
        seen[-1] += [window.clone(), noise.clone(), kwargs["mask"], result]
        return result

    monkeypatch.setattr(redrawing, "aim_guider", spy_aim)
    monkeypatch.setattr(redrawing, "sample", spy_sample)
    stills = keyframe_latent([4, 7])
    before = stills["samples"].clone()
    result = run(
        "SwiftI2V_SegmentSampler",
        model=model,
        z_ref=z_ref,
        seed=3,
        denoise=1.0 if kind == "concat" else 0.5,
        positive=text[0],
        negative=text[1],
        context=context,
        drift_control=0.0,
        keyframes=stills,
    )[0]["samples"]
    assert [positions for positions, *_ in seen] == [
        (0, 4, 1, 2, 3),
        (0, 4, 7, 3, 4, 5, 6),
        (0, 4, 7, 4, 5, 6, 7),  # one frame left, so three neighbors
    ]
    near = [[0], [0, 1], [0, 1]]
    for which, (_, clean, concat, window, noise, mask, made) in zip(near, seen, strict=True):
        clean_keyframes = window[:, :, 1 : 1 + len(which)]
        assert torch.equal(clean_keyframes, before[:, :, which])
        assert not mask[:, :, :clean].any() and mask[:, :, clean:].all()
        assert not noise[:, :, 1 : 1 + len(which)].any() and noise[:, :, clean:].std() > 0.5
        assert (made - window)[:, :, :clean].abs().max() < 1e-5
        assert (concat is None) == (kind == "plain")
        if concat is not None:
            assert torch.equal(concat[:, :, 1 : 1 + len(which)], before[:, :, which])
    assert result.shape == z_ref["samples"].shape
    assert torch.equal(result[:, :, 1:4], seen[0][6][:, :, 2:].cpu())
    assert torch.equal(result[:, :, 7:], seen[2][6][:, :, -1:].cpu())
    assert torch.equal(stills["samples"], before)


def test_they_change_what_is_made_and_the_simple_node_is_the_advanced_one(run, stage_two, z_ref, text):
    from comfy.samplers import CFGGuider, sampler_object
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    guider = CFGGuider(stage_two)
    guider.set_conds(*text)
    guider.set_cfg(1.0)
    options = {"z_ref": z_ref, "drift_control": 0.0}
    simple = {"model": stage_two, "positive": text[0], "negative": text[1], "seed": 3, **options}
    plain = run("SwiftI2V_SegmentSampler", **simple)[0]["samples"]
    stills = keyframe_latent([7])
    ours = run("SwiftI2V_SegmentSampler", **simple, keyframes=stills)[0]["samples"]
    assert (ours - plain).abs().max() > 0.01
    advanced = run(
        "SwiftI2V_SegmentSamplerAdvanced",
        noise=Noise_RandomNoise(3),
        guider=guider,
        sampler=sampler_object("euler"),
        sigmas=torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]),
        keyframes=stills,
        **options,
    )[0]["samples"]
    assert torch.equal(ours, advanced)


@pytest.mark.parametrize(
    ("node_id", "options", "words"),
    [
        ("SwiftI2V_AnchorEncode", {"keyframe_times": "5"}, 'give one for each, for example "6, 12"'),
        ("SwiftI2V_AnchorEncode", {"image": torch.rand(2, 96, 128, 3)}, "keyframes belong to one clip"),
        ("SwiftI2V_SegmentSampler", {"keyframes": {"samples": torch.rand(1, 48, 1, 6, 8)}}, "carries no"),
        (
            "SwiftI2V_SegmentSampler",
            {"keyframes": keyframe_latent([3], 4, 8)},
            "is 128x64, but z_ref is 128x96",
        ),
        ("SwiftI2V_SegmentSampler", {"keyframes": keyframe_latent([8])}, "nearest valid one is 7"),
    ],
)
def test_mistakes_are_refused(
    run, vae, stage_two, photo, motion, keyframes, z_ref, node_id, options, words
):
    base = {
        "SwiftI2V_AnchorEncode": {
            "image": photo,
            "motion": motion[:12],
            "vae": vae,
            "keyframes": keyframes,
            "width": 128,
            "height": 96,
            "frames": 13,
        },
        "SwiftI2V_SegmentSampler": {"model": stage_two, "z_ref": z_ref},
    }[node_id]
    with pytest.raises(ValueError) as error:
        run(node_id, **{**base, **options})
    assert words in str(error.value)
