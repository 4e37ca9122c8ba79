"""A noise mask on z_ref, against ComfyUI's own sampling with the same mask."""

import comfy.samplers
import pytest
import torch
from comfy.utils import reshape_mask
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from swifti2v.nodes.comfyui import sampling

SIGMAS = {"concat": [1.0, 0.9375, 5 / 6, 0.625, 0.0], "plain": [0.8, 0.6, 0.3, 0.0]}


@pytest.fixture
def models(stage_two, stage_one):
    return {"concat": stage_two, "plain": stage_one}


@pytest.fixture
def kept_half():
    """A mask picture at the size of the frames that keeps the left half."""
    mask = torch.ones(1, 96, 128)
    mask[:, :, :64] = 0
    return mask


def masked(z_ref, mask):
    """What Set Latent Noise Mask makes of a latent."""
    import nodes

    return nodes.SetLatentNoiseMask().set_mask(z_ref, mask)[0]


def guider_of(model, text, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*text)
    guider.set_cfg(cfg)
    return guider


def sampled(run, model, text, z_ref, kind, cfg=1.0, **options):
    return run(
        "SwiftI2V_SegmentSamplerAdvanced",
        noise=Noise_RandomNoise(3),
        guider=guider_of(model, text, cfg),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=torch.tensor(SIGMAS[kind]),
        z_ref=z_ref,
        **{"drift_control": 0.0, **options},
    )[0]["samples"]


@torch.inference_mode()
def host_sampling(model, text, z_ref, kind, cfg):
    """ComfyUI's own sampling of the whole clip, with the photo added to the mask."""
    samples = z_ref["samples"]
    if kind == "concat":
        text = [[[t, {**o, "concat_latent_image": samples}] for t, o in c] for c in text]
    mask = reshape_mask(z_ref["noise_mask"], samples.shape)
    mask[:, :, 0] = 0
    return guider_of(model, text, cfg).sample(
        Noise_RandomNoise(3).generate_noise(z_ref),
        samples,
        comfy.samplers.sampler_object("euler"),
        torch.tensor(SIGMAS[kind]),
        denoise_mask=mask,
        seed=3,
    )


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["concat", "plain"])
@pytest.mark.parametrize("soft", [False, True])
def test_one_segment_is_the_hosts_own_sampling_under_the_mask(
    run, models, text, z_ref, kept_half, kind, cfg, soft
):
    mask = kept_half if not soft else torch.linspace(0, 1, 128).expand(1, 96, 128)
    z_ref = masked(z_ref, mask)
    ours = sampled(run, models[kind], text, z_ref, kind, cfg, segment_frames=7)
    theirs = host_sampling(models[kind], text, z_ref, kind, cfg)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - z_ref["samples"])[:, :, 1:, :, 5:].abs().mean() > 0.1


def test_a_mask_that_changes_over_time_is_the_hosts(run, models, text, z_ref):
    mask = torch.rand(8, 96, 128, generator=torch.Generator().manual_seed(2)).round()
    z_ref = masked(z_ref, mask)
    ours = sampled(run, models["plain"], text, z_ref, "plain", segment_frames=7)
    assert (ours - host_sampling(models["plain"], text, z_ref, "plain", 1.0)).abs().max() <= 1e-5


def test_a_mask_with_channels_and_clips_is_the_hosts(run, models, text, make_latent):
    z_ref = make_latent(4, batch=2)
    mask = torch.rand(2, 48, 4, 6, 8, generator=torch.Generator().manual_seed(2)).round()
    both = sampled(run, models["plain"], text, {**z_ref, "noise_mask": mask}, "plain", segment_frames=3)
    alone = {"samples": z_ref["samples"][1:], "noise_mask": mask[1:], "batch_index": [1]}
    assert torch.equal(both[1:], sampled(run, models["plain"], text, alone, "plain", segment_frames=3))
    first = {"samples": z_ref["samples"][:1], "noise_mask": mask[:1]}
    theirs = host_sampling(models["plain"], text, first, "plain", 1.0)
    assert (both[:1] - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
@pytest.mark.parametrize("drift_control", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["concat", "plain"])
def test_masked_parts_keep_z_ref_bit_for_bit_in_every_window(
    run, models, text, z_ref, kept_half, kind, drift_control, context
):
    options = {"segment_frames": 2, "drift_control": drift_control, "context": context}
    result = sampled(run, models[kind], text, masked(z_ref, kept_half), kind, **options)
    before = z_ref["samples"]
    assert torch.equal(result[..., :4], before[..., :4])
    assert ((result - before)[:, :, 1:, :, 4:].abs().mean(dim=(0, 1, 3, 4)) > 0.05).all()


@pytest.mark.parametrize("node", ["simple", "advanced"])
def test_a_mask_of_zeros_keeps_all_of_z_ref(run, stage_two, text, z_ref, node):
    z_ref = masked(z_ref, torch.zeros(1, 96, 128))
    if node == "simple":
        result = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref)[0]["samples"]
    else:
        result = sampled(run, stage_two, text, z_ref, "concat")
    assert torch.equal(result, z_ref["samples"])


def test_a_mask_of_ones_changes_nothing(run, stage_two, text, z_ref):
    plain = sampled(run, stage_two, text, z_ref, "concat", drift_control=0.5)
    ones = sampled(run, stage_two, text, masked(z_ref, torch.ones(1, 8, 8)), "concat", drift_control=0.5)
    assert (plain - ones).abs().max() <= 1e-6


def test_another_mask_is_another_saved_run(run, stage_two, text, z_ref, kept_half, monkeypatch):
    calls, sample = [], sampling.CFGGuider.sample

    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(sampling.CFGGuider, "sample", spy)
    options = {"checkpoint": "masked"}
    sampled(run, stage_two, text, masked(z_ref, kept_half), "concat", **options)
    assert len(calls) == 3
    sampled(run, stage_two, text, masked(z_ref, kept_half), "concat", **options)
    assert len(calls) == 3
    sampled(run, stage_two, text, masked(z_ref, 1 - kept_half), "concat", **options)
    assert len(calls) == 6
    sampled(run, stage_two, text, z_ref, "concat", **options)
    assert len(calls) == 9


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("a text", "is a str, but must be a MASK"),
        (torch.ones(3), "must be a MASK"),
        (torch.full((1, 8, 8), float("nan")), "NaN"),
        (torch.full((1, 8, 8), 3.0), "holds values from 3 to 3, but must be 0 where z_ref stays"),
        (torch.full((1, 8, 8), -0.5), "holds values from -0.5, but must be 0"),
    ],
)
def test_what_is_no_mask_is_refused(run, stage_two, text, z_ref, mask, words):
    with pytest.raises(ValueError, match=words):
        sampled(run, stage_two, text, {**z_ref, "noise_mask": mask}, "concat")


@pytest.mark.parametrize("name", ["latent", "keyframes"])
def test_a_mask_on_another_latent_is_refused_because_it_would_do_nothing(
    run, stage_two, text, z_ref, kept_half, name
):
    value = {**masked(z_ref, kept_half), "swifti2v_keyframe_times": list(range(1, 8))}
    if name == "keyframes":
        value["samples"] = value["samples"][:, :, 1:]
    with pytest.raises(ValueError, match=f"^{name} carries a noise mask, but what is sampled is z_ref"):
        sampled(run, stage_two, text, z_ref, "concat", **{name: value})
