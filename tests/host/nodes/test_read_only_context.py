"""Context inside a window: what read-only frames see and keep, and the memory that is asked for."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from segment_sampling import advanced, guider_of
from swifti2v.nodes.comfyui import window_model
from swifti2v.swifti2v_core.attention import read_only


@pytest.fixture
def features(monkeypatch):
    """What the last block makes of every token, per forward."""
    from comfy.ldm.wan.model import WanAttentionBlock

    seen = []
    forward = WanAttentionBlock.forward

    def spy(self, x, *args, **kwargs):
        result = forward(self, x, *args, **kwargs)
        seen.append(result.detach().clone())
        return result

    monkeypatch.setattr(WanAttentionBlock, "forward", spy)
    return seen


def clean_features(run, features, model, text, z_ref, context, seed):
    features.clear()
    advanced(
        run, model, text, z_ref, seed=seed, sigmas=torch.tensor([1.0, 0.0]), context=context, end_segment=1
    )
    assert len(features) == 6  # blocks
    return features[-1][:, : 3 * 4]  # one clean frame of 3 x 4 tokens


def test_clean_frames_ignore_noisy_ones_only_in_read_only_context(run, features, stage_two, text, z_ref):
    one = clean_features(run, features, stage_two, text, z_ref, "read-only", 1)
    two = clean_features(run, features, stage_two, text, z_ref, "read-only", 2)
    assert torch.allclose(one, two, atol=1e-6)
    one = clean_features(run, features, stage_two, text, z_ref, "bidirectional", 1)
    two = clean_features(run, features, stage_two, text, z_ref, "bidirectional", 2)
    assert (one - two).abs().max() > 1e-3


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_kept_keys_change_nothing(
    pack, run, stage_two, text, z_ref, monkeypatch, frequencies, cfg, sampler
):
    options = {"cfg": cfg, "sampler": sampler, "context": "read-only"}
    kept = advanced(run, stage_two, text, z_ref, **options)
    short = [frames for frames, *_ in frequencies]
    assert short.count(3) > short.count(5) > 0  # later steps ran on the noisy frames alone
    monkeypatch.setattr(read_only.ReadOnlyContext, "holds", lambda *_: False)
    frequencies.clear()
    computed = advanced(run, stage_two, text, z_ref, **options)
    assert 3 not in [frames for frames, *_ in frequencies]
    assert (kept - computed).abs().max() <= 1e-5
    both_ways = advanced(run, stage_two, text, z_ref, cfg=cfg, sampler=sampler)
    assert (kept - both_ways).abs().max() > 1e-3


def test_kept_keys_belong_to_the_blocks_that_ran(pack, run, stage_two, text, z_ref, monkeypatch):
    """Skip-layer guidance runs the same conditions through fewer blocks."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    patched = SkipLayerGuidanceDiT().execute(
        stage_two, scale=1.0, start_percent=0.0, end_percent=1.0, double_layers="2"
    )
    model = (patched.args if hasattr(patched, "args") else patched)[0]
    kept = advanced(run, model, text, z_ref, cfg=3.0, context="read-only")
    monkeypatch.setattr(read_only.ReadOnlyContext, "holds", lambda *_: False)
    computed = advanced(run, model, text, z_ref, cfg=3.0, context="read-only")
    assert (kept - computed).abs().max() <= 1e-5
    without = advanced(run, stage_two, text, z_ref, cfg=3.0, context="read-only")
    assert (kept - without).abs().max() > 1e-3


def test_cross_attention_with_as_many_text_as_window_tokens(run, stage_two, z_ref):
    """Text of the window's length must not be mistaken for the window."""
    same_length = [[torch.randn(1, 4 * 3 * 4, 4096, generator=torch.Generator().manual_seed(5)), {}]]
    padded = [[torch.cat([same_length[0][0], same_length[0][0]], dim=1), {}]]  # attends the same
    options = {"z_ref": z_ref, "context": "read-only", "model": stage_two}
    one = run("SwiftI2V_SegmentSampler", positive=same_length, **options)[0]["samples"]
    two = run("SwiftI2V_SegmentSampler", positive=padded, **options)[0]["samples"]
    assert (one - two).abs().max() <= 1e-4


@pytest.fixture
def asked(monkeypatch):
    """The memory that ComfyUI is asked to have free, per sampling: (for a batch of two, for one)."""
    seen = []
    load = comfy.model_management.load_models_gpu

    def spy(models, memory_required=0, minimum_memory_required=None, **kwargs):
        seen.append((memory_required, minimum_memory_required))
        return load(
            models,
            memory_required=memory_required,
            minimum_memory_required=minimum_memory_required,
            **kwargs,
        )

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    return seen


def test_the_host_is_asked_for_the_memory_of_the_window(run, stage_two, text, z_ref, asked):
    def cost(batch, frames):
        return stage_two.model.memory_required([batch, 48, frames, 6, 8])

    for cfg in (1.0, 3.0):
        asked.clear()
        advanced(run, stage_two, text, z_ref, cfg=cfg)
        windows = [4, 5, 5]
        assert asked == [(cost(2, frames), cost(1, frames)) for frames in windows]  # not of all 8 frames


@pytest.mark.parametrize(("cfg", "conditions", "batch"), [(1.0, 1, 1), (3.0, 2, 1), (3.0, 2, 2)])
def test_the_host_is_asked_for_what_read_only_keeps(
    run, pack, stage_two, text, make_latent, asked, monkeypatch, cfg, conditions, batch
):
    context = read_only.ReadOnlyContext
    made, init = [], context.__init__

    def spy(self, clean_tokens):
        init(self, clean_tokens)
        made.append(self)

    monkeypatch.setattr(context, "__init__", spy)
    z_ref = make_latent(8, batch=batch)
    advanced(run, stage_two, text, z_ref, cfg=cfg, context="read-only")
    made = [
        context for context in made if context._stored
    ]  # the estimate of memory makes one that is empty

    def cost(batch, frames):
        return stage_two.model.memory_required([batch, 48, frames, 6, 8])

    network = stage_two.get_model_object("diffusion_model")
    for frames, clean, kept_context, (two, one) in zip(
        (4, 5, 5) * batch, (1, 2, 4) * batch, made, asked, strict=True
    ):  # a batch is made clip by clip
        kept = sum(
            part.untyped_storage().nbytes()
            for layers in kept_context._stored.values()
            for pair in layers.values()
            for part in pair
        )
        tokens = clean * 3 * 4
        assert kept == 2 * len(network.blocks) * tokens * network.dim * 4 * conditions
        extra = one - cost(1, frames)
        assert kept <= extra < kept + cost(1, 1) * 1.001
        assert two - cost(2, frames) == pytest.approx(2 * extra)


def test_guiders_that_always_use_all_conditions_are_counted_so(pack, stage_two, text):
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

    usual = guider_of(stage_two, text, 1.0)
    assert window_model._conditions_run(usual) == 1
    always = stage_two.clone()
    always.disable_model_cfg1_optimization()
    assert window_model._conditions_run(guider_of(always, text, 1.0)) == 2
    basic = Guider_Basic(stage_two)
    basic.set_conds(text[0])
    assert window_model._conditions_run(basic) == 1
    dual = Guider_DualCFG(stage_two)
    dual.set_conds(text[0], text[0], text[1])
    assert window_model._conditions_run(dual) == 3
