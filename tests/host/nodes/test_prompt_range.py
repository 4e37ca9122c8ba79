"""Prompts per time range: every segment runs with its own, and with nothing else."""

import logging

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import models, window_model

import nodes as host_nodes

KEY = "swifti2v_frames"


@pytest.fixture(scope="module")
def reader(pack):
    """A small random concat model that reads its prompts; the tiny ones were trained without."""
    network = WanModel(
        in_dim=96,
        out_dim=48,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=2,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(5)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


@pytest.fixture
def prompts():
    """Four different conditionings of the tiny models' width."""
    generator = torch.Generator().manual_seed(7)
    return [[[torch.randn(1, 8, 4096, generator=generator), {"pooled": 1}]] for _ in range(4)]


@pytest.fixture
def ranged(run):
    """The node."""

    def node(conditioning, start, end=0, before=None):
        inputs = {"conditioning": conditioning, "start_frame": start, "end_frame": end, "before": before}
        return run("SwiftI2V_PromptRange", **inputs)[0]

    return node


@pytest.fixture
def sample(run, reader, z_ref):
    """The simple sampler; 8 latent frames are 3 segments with the middle frames 6, 18 and 26."""

    def node(positive, negative=None, **options):
        inputs = {"model": reader, "z_ref": z_ref, "seed": 3, "steps": 2, **options}
        return run("SwiftI2V_SegmentSampler", positive=positive, negative=negative, **inputs)[0]["samples"]

    return node


@pytest.fixture
def advanced(run, reader, z_ref):
    """The advanced sampler on some of the segments, with the same schedule."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    def node(positive, negative, cfg, latent=None, start=0, end=0, **options):
        guider = comfy.samplers.CFGGuider(reader)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        given = {
            name: [dict(entry) for entry in entries] for name, entries in guider.original_conds.items()
        }
        result = run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(3),
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor([1.0, 5 / 6, 0.0]),  # 2 steps at shift 5
            z_ref=z_ref,
            latent=latent,
            start_segment=start,
            end_segment=end,
            **options,
        )[0]
        assert guider.original_conds == given and guider.model_patcher is reader
        return result

    return node


def test_entries_carry_their_range_and_inputs_stay(ranged, prompts):
    first = ranged(prompts[0], 0, 15)
    both = ranged(prompts[1], 15, before=first)
    assert [options for _, options in both] == [{"pooled": 1, KEY: (0, 15)}, {"pooled": 1, KEY: (15, 0)}]
    assert both[0][0] is prompts[0][0][0] and both[1][0] is prompts[1][0][0]
    assert [len(value) for value in (first, both)] == [1, 2]
    assert all(prompt[0][1] == {"pooled": 1} for prompt in prompts)
    several = ranged([*prompts[0], *prompts[1]], 5, 9, before=prompts[2])
    assert [options.get(KEY) for _, options in several] == [None, (5, 9), (5, 9)]


def test_a_retake_runs_with_the_prompts_of_its_segment(ranged, sample, prompts):
    positive = ranged(prompts[1], 20, before=ranged(prompts[0], 0, 20))
    clip = sample(positive)
    options = {"latent": {"samples": clip}, "retake": "2"}  # the last one: nothing comes after it
    assert torch.equal(sample(positive, **options), clip)
    assert torch.equal(sample(prompts[1], **options), clip)
    assert not torch.equal(sample(prompts[0], **options), clip)


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_two_prompts_are_the_segments_of_each(ranged, sample, advanced, prompts, context):
    positive = ranged(prompts[1], 15, before=ranged(prompts[0], 0, 15))
    negative = ranged(prompts[3], 20, before=ranged(prompts[2], 0, 20))
    whole = sample(positive, negative, cfg=3.0, context=context)
    parts = advanced(prompts[0], prompts[2], 3.0, end=1, context=context)
    parts = advanced(prompts[1], prompts[2], 3.0, parts, 1, 2, context=context)
    parts = advanced(prompts[1], prompts[3], 3.0, parts, 2, 3, context=context)["samples"]
    assert torch.equal(whole, parts)
    assert torch.equal(advanced(positive, negative, 3.0, context=context)["samples"], whole)
    alone = sample(prompts[0], prompts[2], cfg=3.0, context=context)
    assert torch.equal(alone[:, :, :4], whole[:, :, :4])
    assert (alone - whole)[:, :, 4:].abs().max() > 1e-3  # the prompts do make a difference
    assert all(KEY not in options for prompt in prompts for _, options in prompt)
    assert [options[KEY] for _, options in positive] == [(0, 15), (15, 0)]


def test_the_hosts_own_combination_does_the_same(ranged, sample, prompts):
    one, two = ranged(prompts[0], 0, 15), ranged(prompts[1], 15)
    combined = host_nodes.ConditioningCombine().combine(one, two)[0]
    assert torch.equal(sample(combined), sample(ranged(prompts[1], 15, before=one)))


def test_prompts_for_the_whole_clip_are_as_before(ranged, sample, prompts):
    plain = sample(prompts[0])
    assert torch.equal(sample(ranged(prompts[0], 0)), plain)
    assert torch.equal(sample(ranged(prompts[0], 10, 14)), plain)  # the only one is the nearest
    both = [*prompts[0], *prompts[1]]
    mixed = sample(both)
    assert (mixed - plain)[:, :, 1:].abs().max() > 1e-3
    assert torch.equal(sample(ranged(prompts[1], 0, before=prompts[0])), mixed)


def test_overlapping_ranges_are_mixed_like_combined_prompts(ranged, sample, advanced, prompts):
    overlapping = ranged(prompts[1], 15, before=prompts[0])
    parts = advanced(prompts[0], prompts[2], 1.0, end=1)
    parts = advanced([*prompts[0], *prompts[1]], prompts[2], 1.0, parts, 1)["samples"]
    assert torch.equal(sample(overlapping), parts)


def test_the_model_gets_the_chosen_prompts_and_no_range(ranged, sample, prompts, monkeypatch):
    seen = []
    for name in ("extra_conds", "extra_conds_shapes"):
        method = getattr(comfy.model_base.WAN22, name)

        def spy(self, *, _name=name, _method=method, **kwargs):
            seen.append((_name, KEY in kwargs, kwargs["cross_attn"]))
            return _method(self, **kwargs)

        monkeypatch.setattr(comfy.model_base.WAN22, name, spy)
    sample(ranged(prompts[1], 15, before=ranged(prompts[0], 0, 15)), prompts[2])
    assert not any(key for _, key, _ in seen)
    for name in ("extra_conds", "extra_conds_shapes"):  # what runs, and what the host counts
        texts = [text for found, _, text in seen if found == name]
        expected = [prompt for first in (0, 1, 1) for prompt in (prompts[first], prompts[2])]
        assert len(texts) == 6
        for text, prompt in zip(texts, expected, strict=True):
            assert torch.equal(text.cpu(), prompt[0][0])


def test_the_host_is_asked_for_the_memory_of_one_prompt(pack, ranged, sample, prompts, monkeypatch):
    asked, counted = [], []
    load, kept_bytes = comfy.model_management.load_models_gpu, window_model.kept_bytes

    def spy(models, memory_required=0, **kwargs):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **kwargs)

    def count(model, view, conditions):
        counted.append(conditions)
        return kept_bytes(model, view, conditions)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    monkeypatch.setattr(window_model, "kept_bytes", count)

    def memory(positive):
        asked.clear()
        counted.clear()
        sample(positive, prompts[2], cfg=3.0, context="read-only")
        return list(asked), counted[1:]  # the first is of the estimate for the whole run

    two = ranged(prompts[1], 15, before=ranged(prompts[0], 0, 15))
    alone, ranges, together = memory(prompts[0]), memory(two), memory([*prompts[0], *prompts[1]])
    assert len(alone[0]) == 3 and ranges == alone
    assert alone[1] == [2, 2, 2] and together[1] == [3, 3, 3]


def test_unused_prompts_are_logged(ranged, sample, prompts, caplog):
    with caplog.at_level(logging.WARNING, logger="SwiftI2V"):
        sample(ranged(prompts[1], 15, before=ranged(prompts[0], 0, 15)))
    assert not caplog.text
    with caplog.at_level(logging.WARNING, logger="SwiftI2V"):
        sample(ranged(prompts[1], 7, 12, before=prompts[0]))
    assert "positive has a prompt with start_frame 7 and end_frame 12 that no segment uses" in caplog.text
