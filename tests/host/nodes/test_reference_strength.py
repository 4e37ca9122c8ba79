"""How much the noisy frames follow the reference, against compositions made by hand."""

import logging
from types import SimpleNamespace

import comfy.patcher_extension
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.wan.model import WanModel
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from swifti2v.nodes.comfyui import compiled_model, window_model
from swifti2v.swifti2v_core.attention import read_only

FOUR_STEPS = torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0])
ONE_STEP = torch.tensor([1.0, 0.0])
FEW_STEPS = torch.tensor([1.0, 5 / 6, 0.0])


@pytest.fixture
def inputs_seen(monkeypatch):
    """What reaches the network, per forward."""
    seen, forward = [], WanModel.forward_orig

    def spy(self, x, *args, **kwargs):
        seen.append(x.clone())
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", spy)
    return seen


def guider_of(model, text, cfg=1.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*text)
    guider.set_cfg(cfg)
    return guider


def sampled(run, model, text, z_ref, cfg=1.0, sampler="euler", sigmas=FOUR_STEPS, **options):
    return run(
        "SwiftI2V_SegmentSamplerAdvanced",
        guider=guider_of(model, text, cfg),
        sampler=comfy.samplers.sampler_object(sampler),
        sigmas=sigmas,
        z_ref=z_ref,
        **{"noise": Noise_RandomNoise(3), "drift_control": 0.0, **options},
    )[0]["samples"]


@torch.inference_mode()
def host_sampling(model, text, z_ref, cfg, sampler, sigmas, *, dropped):
    """The host's own sampling of the whole clip, with the reference or without it."""
    samples = z_ref["samples"]
    concat = samples.clone()
    if dropped:  # in VAE space; the network sees zeros
        concat[:, :, 1:] = model.model.process_latent_out(torch.zeros_like(concat[:, :, 1:]))
    text = [[[t, {**o, "concat_latent_image": concat}] for t, o in c] for c in text]
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[:, :, 0] = 0
    noise, sampler = Noise_RandomNoise(3).generate_noise(z_ref), comfy.samplers.sampler_object(sampler)
    return guider_of(model, text, cfg).sample(noise, samples, sampler, sigmas, denoise_mask=mask, seed=3)


def strength_by_hand(model, strength):
    """The same through ComfyUI's own hook, around all that this pack does."""
    clone = model.clone()

    def both(apply_model, args):
        c = args["c"]
        clean = c["transformer_options"]["SwiftI2V"].clean
        dropped = c["c_concat"].clone()
        dropped[:, :, clean:] = 0
        with_reference = apply_model(args["input"], args["timestep"], **c)
        without = apply_model(args["input"], args["timestep"], **{**c, "c_concat": dropped})
        return without + strength * (with_reference - without)

    clone.set_model_unet_function_wrapper(both)
    return clone


@pytest.mark.parametrize("strength", [None, 1, 0, 0.5, 2.0])
def test_one_forward_per_step_at_1_and_0_and_two_otherwise(
    run, stage_two, text, z_ref, inputs_seen, strength
):
    options = {} if strength is None else {"reference_strength": strength}
    result = sampled(run, stage_two, text, z_ref, **options)
    steps = 3 * 4  # segments, steps
    assert len(inputs_seen) == (2 * steps if strength in (0.5, 2.0) else steps)
    clean = [1] * 4 + [2] * 4 + [4] * 4
    if strength == 0:
        for x, count in zip(inputs_seen, clean, strict=True):
            assert not x[:, 48:, count:].any() and x[:, 48:, :count].any()
    if strength == 1:
        assert torch.equal(result, sampled(run, stage_two, text, z_ref))
        assert all(x[:, 48:, -1].any() for x in inputs_seen)
    assert torch.equal(result[:, :, 0], z_ref["samples"][:, :, 0])


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_strength_0_is_the_hosts_sampling_without_a_reference(run, stage_two, text, z_ref, sampler, cfg):
    given = (stage_two, text, z_ref, cfg, sampler)
    ours = sampled(run, *given, sigmas=FEW_STEPS, segment_frames=7, reference_strength=0)
    theirs = host_sampling(*given, FEW_STEPS, dropped=True)
    assert (ours - theirs)[:, :, 1:].abs().max() <= 1e-5
    assert (ours - host_sampling(*given, FEW_STEPS, dropped=False))[:, :, 1:].abs().mean() > 0.05


@pytest.mark.parametrize(("cfg", "batch"), [(1.0, 1), (3.0, 1), (3.0, 2)])
@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_one_step_is_the_composition_by_hand(run, stage_two, text, make_latent, cfg, batch, strength):
    z_ref = make_latent(8, batch=batch)
    given = (stage_two, text, z_ref, cfg, "euler")
    ours = sampled(run, *given, sigmas=ONE_STEP, segment_frames=7, reference_strength=strength)
    followed = host_sampling(*given, ONE_STEP, dropped=False)
    dropped = host_sampling(*given, ONE_STEP, dropped=True)
    by_hand = dropped + strength * (followed - dropped)
    assert (ours - by_hand)[:, :, 1:].abs().max() <= 1e-5 * max(1, cfg)
    assert (followed - dropped)[:, :, 1:].abs().mean() > 0.05


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_segments_and_steps_are_the_hosts_own_hook(run, stage_two, text, z_ref, cfg):
    ours = sampled(run, stage_two, text, z_ref, cfg=cfg, reference_strength=0.5)
    hook = sampled(run, strength_by_hand(stage_two, 0.5), text, z_ref, cfg=cfg)
    assert (ours - hook).abs().max() <= 1e-4
    assert (ours - sampled(run, stage_two, text, z_ref, cfg=cfg)).abs().mean() > 0.01


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("strength", [0, 0.5])
def test_kept_keys_change_nothing(pack, run, stage_two, text, z_ref, monkeypatch, cfg, strength):
    context = read_only.ReadOnlyContext
    made, init = [], context.__init__

    def spy(self, clean_tokens):
        init(self, clean_tokens)
        made.append(self)

    monkeypatch.setattr(context, "__init__", spy)
    options = {"cfg": cfg, "context": "read-only", "reference_strength": strength}
    kept = sampled(run, stage_two, text, z_ref, **options)
    made = [
        context for context in made if context._stored
    ]  # the estimate of memory makes one that is empty
    forwards = (1 if cfg == 1 else 2) * (2 if strength else 1)
    conditions = 1  # both prompts of cfg 3 run as one batch
    assert [len(one._stored) for one in made] == [conditions * (2 if strength else 1)] * 3
    network = stage_two.get_model_object("diffusion_model")
    for one, clean in zip(made, (1, 2, 4), strict=True):
        bytes_kept = sum(
            p.nbytes for layers in one._stored.values() for pair in layers.values() for p in pair
        )
        assert bytes_kept == 2 * len(network.blocks) * clean * 12 * network.dim * 4 * forwards
    monkeypatch.setattr(context, "holds", lambda *_: False)
    computed = sampled(run, stage_two, text, z_ref, **options)
    assert (kept - computed).abs().max() <= 1e-4


@pytest.mark.parametrize(("strength", "forwards"), [(1, 1), (0, 1), (0.5, 2)])
def test_the_host_is_asked_for_what_both_predictions_keep(pack, stage_two, strength, forwards):
    context = read_only.ReadOnlyContext(24)
    view = window_model.WindowView((0, 3, 4, 5, 6), 2, context, strength)
    network = stage_two.get_model_object("diffusion_model")
    expected = 2 * len(network.blocks) * 24 * network.dim * 4 * 2 * forwards
    assert window_model.kept_bytes(stage_two, view, 2) == expected


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_compiled_blocks_make_the_same(pack, run, stage_two, text, make_latent, monkeypatch, context):
    monkeypatch.setattr(compiled_model, "COMPILER", "eager")
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)
    torch.compiler.reset()
    compiled, z_ref = compiled_model.with_compiled_blocks(stage_two), make_latent(5, 4, 4)
    for strength in (1, 0.5, 0):
        options = {"sigmas": FEW_STEPS, "context": context, "reference_strength": strength}
        expected = sampled(run, stage_two, text, z_ref, **options)
        assert (sampled(run, compiled, text, z_ref, **options) - expected).abs().max() <= 1e-5
    torch.compiler.reset()


def test_wrappers_of_other_packs_see_one_forward(run, stage_two, text, z_ref, inputs_seen):
    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    model = stage_two.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    sampled(run, model, text, z_ref, reference_strength=0.5)
    assert (len(calls), len(inputs_seen)) == (12, 24)


def test_a_batch_is_sampled_clip_by_clip_alike(run, stage_two, text, make_latent):
    batch = make_latent(8, batch=2)
    both = sampled(run, stage_two, text, batch, reference_strength=0.5)
    drawn = Noise_RandomNoise(3).generate_noise(batch)[1:]
    noise = SimpleNamespace(seed=3, generate_noise=lambda latent: drawn)
    second = {"samples": batch["samples"][1:]}
    alone = sampled(run, stage_two, text, second, noise=noise, reference_strength=0.5)
    assert (both[1:] - alone).abs().max() <= 1e-5


def test_plain_weights_say_that_they_have_no_such_input(run, stage_one, z_ref, caplog):
    given = {"model": stage_one, "z_ref": z_ref, "denoise": 0.5, "steps": 1}
    with caplog.at_level(logging.WARNING, "SwiftI2V"):
        plain = run("SwiftI2V_SegmentSampler", **given)[0]["samples"]
        assert caplog.messages == []
        told = run("SwiftI2V_SegmentSampler", reference_strength=0.5, **given)[0]["samples"]
    assert torch.equal(plain, told)
    assert caplog.messages == [
        "reference_strength is 0.5, but plain weights have no reference channels, so it has no influence; "
        "set it to 1 and lower denoise (or the first sigma) to follow the reference more."
    ]


@pytest.mark.parametrize(
    ("strength", "nearest"), [(-0.5, "0"), (2.5, "2"), (float("nan"), "1")], ids=["low", "high", "nan"]
)
def test_a_strength_out_of_range_is_refused(run, stage_two, z_ref, strength, nearest, inputs_seen):
    with pytest.raises(ValueError) as error:
        run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, reference_strength=strength)
    assert str(error.value) == (
        f"reference_strength is {strength:g}, but must be from 0 to 2; "
        f"the nearest valid value is {nearest}."
    )
    assert inputs_seen == []
