"""Temporal window attention: what it computes, what it composes with, what it leaves alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import attention, attention_rules, compiled_model, forward, models, sampling
from swifti2v.swifti2v_core.attention import temporal_windows

import nodes as host_nodes

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "swifti2v_refine.json"
FRAME_TOKENS = 4
"""Tokens of a latent frame of 4x4 cells."""


@pytest.fixture(scope="module")
def core(pack):
    return temporal_windows


def random_model(pack, blocks):
    """A random plain Stage II model of a few blocks with heads of 128 channels."""
    network = WanModel(
        model_type="t2v",
        in_dim=48,
        out_dim=48,
        dim=256,
        ffn_dim=64,
        num_heads=2,
        num_layers=blocks,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


@pytest.fixture(scope="module")
def tiny(pack):
    return random_model(pack, 2)


@pytest.fixture
def windowed(run):
    """Patch a model with the node."""

    def patch(model, window_frames):
        return run("SwiftI2V_TemporalWindows", model=model, window_frames=window_frames)[0]

    return patch


def refined(model, text, latent, cfg=1.0, steps=2):
    """ComfyUI's own KSampler, from an existing latent."""
    with torch.inference_mode():
        options = (model, 3, steps, cfg, "euler", "simple", *text, latent, 0.5)
        return host_nodes.KSampler().sample(*options)[0]["samples"]


def masked_by_hand(core, frames, window_frames):
    """An override of a user: attention with a mask of blocks, in every self-attention."""
    count = frames * FRAME_TOKENS

    def override(attend, query, key, value, heads, **kwargs):
        if key.shape[1] != count:
            return attend(query, key, value, heads, **kwargs)
        block = kwargs["transformer_options"]["block_index"]
        mask = torch.zeros(count, count, dtype=torch.bool)
        for window in core.plan_windows(frames, window_frames, block):
            tokens = slice(window.start * FRAME_TOKENS, window.stop * FRAME_TOKENS)
            mask[tokens, tokens] = True
        parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
        result = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
        return result.transpose(1, 2).flatten(2)

    return override


def with_override(model, override):
    clone = model.clone()
    clone.model_options["transformer_options"][attention.OVERRIDE] = override
    return clone


# --- What it computes -------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("frames", "window_frames"), [(7, 4), (8, 4), (5, 2)])
def test_a_sampling_is_the_hosts_with_a_block_mask(
    core, tiny, text, make_latent, windowed, cfg, frames, window_frames
):
    latent = make_latent(frames, 4, 4, batch=2)
    ours = refined(windowed(tiny, window_frames), text, latent, cfg)
    by_hand = masked_by_hand(core, frames, window_frames)
    theirs = refined(with_override(tiny, by_hand), text, latent, cfg)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - refined(tiny, text, latent, cfg)).abs().max() > 1e-3


@pytest.mark.parametrize(("cfg", "window_frames"), [(1.0, 6), (3.0, 6), (1.0, 100)])
def test_one_window_is_the_unpatched_model(stage_one, text, make_latent, windowed, cfg, window_frames):
    latent = make_latent(6, batch=2)
    ours = refined(windowed(stage_one, window_frames), text, latent, cfg)
    assert (ours - refined(stage_one, text, latent, cfg)).abs().max() <= 1e-5
    assert (ours - refined(windowed(stage_one, 4), text, latent, cfg)).abs().max() > 1e-3


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
@pytest.mark.parametrize("block", [0, 1])
def test_every_layout_is_masked_attention(pack, core, heads_in, heads_out, block):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 7 * FRAME_TOKENS, 8, generator=generator) for _ in range(3)]
    window = torch.tensor([i for i, w in enumerate(core.plan_windows(7, 4, block)) for _ in w])
    window = window.repeat_interleave(FRAME_TOKENS)
    mask = window[:, None] == window[None, :]
    expected = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)
    rule = attention_rules.TemporalForward(4, 7, FRAME_TOKENS)
    given = parts if heads_in else [part.transpose(1, 2).flatten(2) for part in parts]
    layout = {"skip_reshape": heads_in, "skip_output_reshape": heads_out}

    def network_forward(transformer_options):
        transformer_options["block_index"] = block
        return attention_pytorch(*given, 3, **layout, transformer_options=transformer_options)

    network = SimpleNamespace(blocks=[SimpleNamespace()] * 2)
    planned = forward.plan_forward(network, given[0], given[0], {}, rule)
    result = forward.run_forward(planned, network_forward, (), {}, {})
    expected = expected if heads_out else expected.transpose(1, 2).flatten(2)
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 2])
def test_only_frames_within_reach_feel_a_change(pack, text, make_latent, windowed, blocks):
    """One block reaches its own window; the next one, moved by half, two windows."""
    model = windowed(random_model(pack, blocks), 4)
    latent = make_latent(12, 4, 4)
    changed = {"samples": latent["samples"].clone()}
    changed["samples"][:, :, 9] += 1
    one, two = (refined(model, text, value, steps=1) for value in (latent, changed))
    felt = ((one - two).abs().amax(dim=(0, 1, 3, 4)) > 1e-6).tolist()
    # Windows of block 0: 0-3, 4-7, 8-11; of block 1: 0-1, 2-5, 6-9, 10-11.
    assert felt == [frame >= {1: 8, 2: 6}[blocks] for frame in range(12)]


def test_text_as_long_as_the_clip_is_not_mistaken_for_it(stage_one, make_latent, windowed):
    """The same text twice over is attended like the text once."""
    generator = torch.Generator().manual_seed(5)
    same_length = torch.randn(1, 8 * FRAME_TOKENS, 4096, generator=generator)
    twice = torch.cat([same_length, same_length], dim=1)
    latent, model = make_latent(8, 4, 4), windowed(stage_one, 4)
    one, two = (refined(model, ([[t, {}]], [[t, {}]]), latent) for t in (same_length, twice))
    assert (one - two).abs().max() <= 1e-4


# --- What it composes with --------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_users_override_runs_in_every_window(tiny, text, make_latent, windowed, order):
    seen = []

    def users(attend, query, key, value, *args, **kwargs):
        seen.append((len(query), query.shape[1], key.shape[1]))
        return 2 * attend(query, key, value, *args, **kwargs)

    latent = make_latent(7, 4, 4)
    if order == "before":
        model = windowed(with_override(tiny, users), 4)
    else:
        model = with_override(windowed(tiny, 4), users)
    ours = refined(model, text, latent, steps=1)
    whole, texts = 7 * FRAME_TOKENS, 8
    assert seen == [
        *[(1, n * FRAME_TOKENS, n * FRAME_TOKENS) for n in (4, 3)],
        (1, whole, texts),
        *[(1, n * FRAME_TOKENS, n * FRAME_TOKENS) for n in (2, 4, 1)],
        (1, whole, texts),
    ]
    assert (ours - refined(windowed(tiny, 4), text, latent, steps=1)).abs().max() > 1e-3


def test_the_kernel_is_chosen_from_the_windows(tiny, text, make_latent, windowed, monkeypatch):
    facts = []
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)
    monkeypatch.setattr(attention.kernels, "nvidia_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention.kernels, "prefers_cudnn", lambda *given: facts.append(given[3:]))
    refined(windowed(tiny, 4), text, make_latent(8, 4, 4), steps=1)
    window, half, whole = (n * FRAME_TOKENS for n in (4, 2, 8))
    texts = (whole, 8)
    # Two windows are one call; moved by half, the two short ends are two more.
    assert facts == [(window, window), texts, (half, half), (window, window), (half, half), texts]


def test_the_chosen_kernel_gives_the_same(tiny, text, make_latent, windowed, monkeypatch):
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)
    model, latent = windowed(tiny, 4), make_latent(7, 4, 4)
    expected = refined(model, text, latent)
    monkeypatch.setattr(attention.kernels, "prefers_cudnn", lambda *facts: True)
    assert (refined(model, text, latent) - expected).abs().max() <= 1e-5


def test_the_order_of_lora_and_windows_does_not_matter(tiny, text, make_latent, windowed, workspace):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    name = "diffusion_model.blocks.0.self_attn.q.lora"
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 256), (256, 4)))
    lora = workspace / "models" / "loras" / "windows.safetensors"
    save_file({f"{name}_down.weight": down, f"{name}_up.weight": up}, lora)

    def with_lora(model):
        return host_nodes.LoraLoaderModelOnly().load_lora_model_only(model, lora.name, 0.5)[0]

    latent = make_latent(7, 4, 4)
    before = refined(windowed(with_lora(tiny), 4), text, latent)
    after = refined(with_lora(windowed(tiny, 4)), text, latent)
    assert torch.equal(before, after)
    assert (before - refined(windowed(tiny, 4), text, latent)).abs().max() > 1e-3


def test_patched_twice_the_last_one_counts(tiny, text, make_latent, windowed):
    latent = make_latent(8, 4, 4)
    twice = windowed(windowed(tiny, 2), 4)
    assert torch.equal(refined(twice, text, latent), refined(windowed(tiny, 4), text, latent))
    assert [len(group) for group in twice.wrappers["diffusion_model"].values()] == [1]


def test_the_model_given_stays_as_it_is(tiny, text, make_latent, windowed):
    latent = make_latent(8, 4, 4)
    before = refined(tiny, text, latent)
    patched = windowed(tiny, 4)
    refined(patched, text, latent)
    assert patched is not tiny and patched.model is tiny.model
    assert tiny.model_options["transformer_options"] == {}
    assert not tiny.wrappers.get("diffusion_model")
    assert attention.OVERRIDE not in patched.model_options["transformer_options"]
    assert torch.equal(refined(tiny, text, latent), before)


def test_stage_one_samples_in_windows(run, stage_one, vae, photo, windowed):
    given = {"vae": vae, "image": photo, "steps": 2, "width": 64, "height": 32, "frames": 21}

    def made(model):
        return run("SwiftI2V_MotionSampler", model_high_noise=model, **given)[1]["samples"]

    plain = made(stage_one)
    assert (made(windowed(stage_one, 6)) - plain).abs().max() <= 1e-5
    assert (made(windowed(stage_one, 2)) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_windows_of_segments_that_fit_are_left_alone(run, stage_two, z_ref, windowed, context):
    given = {"z_ref": z_ref, "context": context}
    plain = run("SwiftI2V_SegmentSampler", model=stage_two, **given)[0]["samples"]
    patched = run("SwiftI2V_SegmentSampler", model=windowed(stage_two, 6), **given)[0]["samples"]
    assert torch.equal(plain, patched)


# --- What is refused --------------------------------------------------------------------------------


def test_windows_of_segments_that_would_be_cut_are_refused(pack, run, stage_two, z_ref, windowed, text):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model = windowed(stage_two, 4)
    sentence = "window_frames 4, but a segment's window of 5 latent frames .* set window_frames to 6"
    with pytest.raises(ValueError, match=sentence):
        run("SwiftI2V_SegmentSampler", model=model, z_ref=z_ref)
    with pytest.raises(ValueError, match=sentence):
        run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(0),
            guider=sampling.cfg_guider(model, *text, 1.0),
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor([1.0, 0.0]),
            z_ref=z_ref,
        )


@pytest.mark.parametrize(("query", "key"), [(9, 9), (8, 9)])
def test_references_in_the_sequence_are_refused(query, key):
    parts = [torch.zeros(1, frames * FRAME_TOKENS, 8) for frames in (query, key, key)]
    rule = attention_rules.TemporalForward(4, 8, FRAME_TOKENS)
    sentence = f"from {4 * query} to {4 * key} tokens, but 8 latent frames of 4 tokens are 32"
    with pytest.raises(ValueError, match=sentence):
        rule.attend(lambda query, key, value: query, parts, 0, token_dim=1, output_dim=1)


def test_a_reference_after_the_clip_is_refused(tiny, text, make_latent, windowed):
    """As Phantom models take theirs: by time_dim_concat, frames after the clip's own."""
    latent, extra = make_latent(8, 4, 4), make_latent(1, 4, 4)["samples"]
    with_extra = [[[t, {**o, "time_dim_concat": extra}] for t, o in c] for c in text]
    refined(tiny, with_extra, latent)
    with pytest.raises(ValueError, match="from 36 to 36 tokens, but 8 latent frames"):
        refined(windowed(tiny, 4), with_extra, latent)


# --- The shipped workflow ---------------------------------------------------------------------------


def test_the_shipped_workflow_refines(pack, run, stage_one, vae, photo, text):
    """Its API twin with tiny models and a small clip, up to the sampler, node by node."""
    made = {"LoadImage": [photo], "VAELoader": [vae], "SwiftI2V_LoadStageII": [stage_one, "plain"]}
    texts = iter(text)
    small = {"width": 128, "height": 64, "frames": 33}

    def values(number):
        node = json.loads(WORKFLOW.read_text())[number]
        kind, given = node["class_type"], node["inputs"]
        if kind == "CLIPTextEncode":
            return [next(texts)]
        if kind in made:
            return made[kind]
        given = {k: values(v[0])[v[1]] if isinstance(v, list) else v for k, v in given.items()}
        if kind == "KSampler":
            with torch.inference_mode():
                return [(given, host_nodes.KSampler().sample(**given)[0])]
        return run(kind, **(given | {k: v for k, v in small.items() if k in given}))

    sampler = next(k for k, v in json.loads(WORKFLOW.read_text()).items() if v["class_type"] == "KSampler")
    given, latent = values(sampler)[0]
    started, refined_latent = given["latent_image"]["samples"], latent["samples"]
    assert refined_latent.shape == started.shape == (1, 48, 9, 4, 8)
    assert (
        given["model"].model_options["transformer_options"]["SwiftI2V_temporal_windows"].window_frames == 6
    )
    assert given["denoise"] == 0.4
    change = (refined_latent - started).pow(2).mean().sqrt() / started.std()
    assert 0.01 < change < 1  # redrawn, and still the clip


# --- Compiled models --------------------------------------------------------------------------------


def whole(pack, model):
    """As ComfyUI's TorchCompileModel compiles: without guards on the transformer options."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    compiled = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=compiled, backend="eager", options=options)
    return compiled


def blocks(pack, model):
    return compiled_model.with_compiled_blocks(model)


@pytest.fixture
def eager(pack, monkeypatch):
    """Compile without a compiler: what PyTorch remembers of a first run is the same."""
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)
    monkeypatch.setattr(compiled_model, "COMPILER", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_an_override_around_the_one_before_it_is_no_circle(pack, tiny, text, make_latent, eager, windowed):
    """Some nodes run around whatever override they find in the MODEL."""
    calls = []

    def around(model):
        before = model.model_options.get("transformer_options", {}).get(attention.OVERRIDE)

        def users(attend, *args, **kwargs):
            calls.append(1)
            return before(attend, *args, **kwargs) if before else attend(*args, **kwargs)

        return with_override(model, users)

    latent = make_latent(6, 4, 4)
    model = around(windowed(around(compiled_model.with_compiled_blocks(tiny)), 4))
    assert (refined(model, text, latent) - refined(windowed(tiny, 4), text, latent)).abs().max() <= 1e-5
    assert calls


@pytest.mark.parametrize("how", [whole, blocks])
@pytest.mark.parametrize("order", ["compiled first", "windowed first"])
def test_compiled_models_remember_nothing_of_their_first_run(
    pack, tiny, text, make_latent, eager, windowed, how, order
):
    compiled = how(pack, tiny)
    short, long = make_latent(6, 4, 4), make_latent(9, 4, 4, seed=1)
    refined(compiled, text, short)  # without windows, at a size that comes again
    for latent, window_frames in ((short, 4), (long, 4), (short, 2), (short, 6)):
        ours = windowed(compiled, window_frames)
        if order == "windowed first":
            ours = how(pack, windowed(tiny, window_frames))
        expected = refined(windowed(tiny, window_frames), text, latent)
        assert (refined(ours, text, latent) - expected).abs().max() <= 1e-5
    assert (refined(compiled, text, short) - refined(tiny, text, short)).abs().max() <= 1e-5
