"""The attention override: what it computes, what it leaves alone, and that compiled models keep to it."""

from types import SimpleNamespace

import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch, attention_split
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import attention, attention_rules, compiled_model, forward, models, sampling
from swifti2v.nodes.pipeline import stage_one as motion_making
from swifti2v.swifti2v_core.attention import read_only

import nodes as host_nodes

PARTS = 2, 3, 10, 8
"""Batch, heads, tokens, channels of a head."""


@pytest.fixture
def chosen(monkeypatch):
    """Make every attention one whose kernel we choose; holds the choices made."""
    calls, attend = [], attention.kernels.attend_cudnn_first

    def spy(query, *args, **kwargs):
        calls.append(query.shape)
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(attention.kernels, "prefers_cudnn", lambda *facts: True)
    monkeypatch.setattr(attention.kernels, "attend_cudnn_first", spy)
    return calls


@pytest.fixture
def plain_attention(monkeypatch):
    """What ComfyUI runs on a GPU; on the CPU it takes another attention."""
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)


@pytest.fixture(scope="module")
def tiny(pack):
    """A random plain Stage II model with two blocks, quick to compile."""
    network = WanModel(
        model_type="t2v",
        in_dim=48,
        out_dim=48,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=2,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


def random_parts(heads_in):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(PARTS, generator=generator) for _ in range(3)]
    return parts if heads_in else [part.transpose(1, 2).flatten(2) for part in parts]


def attended(attend, parts, *args, users=None, rule=None, **kwargs):
    """Call ComfyUI's attention as a network does inside a forward of ours."""
    options = {} if users is None else {attention.OVERRIDE: users}
    network = SimpleNamespace(blocks=[SimpleNamespace()])
    x = parts[0]
    planned = forward.plan_forward(network, x, x, options, rule, always=True)

    def network_forward(transformer_options):
        transformer_options["block_index"] = 0
        return attend(*parts, PARTS[1], *args, **kwargs, transformer_options=transformer_options)

    return forward.run_forward(planned, network_forward, (), options, {})


# --- The kernel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
def test_every_layout_is_the_hosts_attention(pack, chosen, heads_in, heads_out):
    parts = random_parts(heads_in)
    layout = {"skip_reshape": heads_in, "skip_output_reshape": heads_out}
    ours = attended(attention_pytorch, parts, **layout)
    theirs = attention_pytorch(*parts, PARTS[1], **layout)
    assert len(chosen) == 1
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_decision_is_made_from_what_is_attended(pack, monkeypatch):
    facts = []
    monkeypatch.setattr(attention.kernels, "nvidia_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention.kernels, "prefers_cudnn", lambda *given: facts.append(given))
    query, key, value = random_parts(True)
    given = (query[:, :, :4], key, value)
    attended(attention_pytorch, given, skip_reshape=True)
    flat = [part.transpose(1, 2).flatten(2) for part in given]
    attended(attention_pytorch, flat)
    assert facts == [((9, 0), torch.float32, 8, 4, 10)] * 2


@pytest.mark.parametrize(
    "asked",
    [
        {"mask": torch.ones(10, 10, dtype=torch.bool)},
        {"scale": 0.5},
        {"enable_gqa": True},
        {"something_new": 1},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_we_do_not_know_is_left_to_the_host(pack, chosen, asked):
    parts = random_parts(True)
    given = {"skip_reshape": True, **asked}
    ours = attended(attention_pytorch, parts, **given)
    assert torch.equal(ours, attention_pytorch(*parts, PARTS[1], **given))
    if "mask" in asked:  # ComfyUI may give it by place, too
        mask = asked["mask"]
        attended(attention_pytorch, parts, mask, skip_reshape=True)
    assert chosen == []


def test_another_attention_of_the_host_is_left_alone(pack, chosen):
    """As with --use-sage-attention: the user has chosen."""
    parts = random_parts(False)
    ours = attended(attention_split, parts)
    assert torch.equal(ours, attention_split(*parts, PARTS[1]))
    assert chosen == []


# --- The user's override ----------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_the_users_override_decides(run, stage_two, z_ref, plain_attention, chosen, context):
    calls = []

    def users(attend, *args, **kwargs):
        calls.append(attend)
        return attend(*args, **kwargs)

    model = stage_two.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = users
    given = {"z_ref": z_ref, "context": context}
    with_user = run("SwiftI2V_SegmentSampler", model=model, **given)[0]["samples"]
    assert chosen == []
    assert len(calls) > 100 and set(calls) == {attention_pytorch.__wrapped__}
    without = run("SwiftI2V_SegmentSampler", model=stage_two, **given)[0]["samples"]
    assert len(chosen) > 100
    assert (with_user - without).abs().max() <= 1e-5


def test_the_users_override_decides_in_stage_one(run, stage_one, vae, photo, plain_attention, chosen):
    calls = []

    def users(attend, *args, **kwargs):
        calls.append(attend)
        return attend(*args, **kwargs)

    model = stage_one.clone()
    model.model_options["transformer_options"][attention.OVERRIDE] = users
    given = {"vae": vae, "image": photo, "steps": 1, "width": 64, "height": 32, "frames": 5}
    with_user = run("SwiftI2V_MotionSampler", model_high_noise=model, **given)[1]["samples"]
    assert chosen == []
    assert calls and set(calls) == {attention_pytorch.__wrapped__}
    without = run("SwiftI2V_MotionSampler", model_high_noise=stage_one, **given)[1]["samples"]
    assert chosen
    assert (with_user - without).abs().max() <= 1e-5
    assert model.model_options["transformer_options"] == {attention.OVERRIDE: users}


def test_stage_one_samples_with_the_chosen_kernel(
    pack, run, stage_one, vae, photo, plain_attention, chosen, monkeypatch
):
    given = {"model_high_noise": stage_one, "vae": vae, "image": photo, "steps": 1}
    given |= {"width": 64, "height": 32, "frames": 5}
    ours = run("SwiftI2V_MotionSampler", **given)[1]["samples"]
    assert chosen
    monkeypatch.setattr(motion_making, "motion_guider", sampling.cfg_guider)
    theirs = run("SwiftI2V_MotionSampler", **given)[1]["samples"]
    assert (ours - theirs).abs().max() <= 1e-5


# --- Read-only context ------------------------------------------------------------------------------


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
def test_read_only_works_for_any_head_layout(pack, heads_in, heads_out):
    """``[B, L, H * D]`` and ``[B, H, L, D]`` at both ends of the host's attention."""
    parts = random_parts(heads_in)
    mask = torch.ones(10, 10, dtype=torch.bool)
    mask[:4, 4:] = False
    expected = torch.nn.functional.scaled_dot_product_attention(*random_parts(True), attn_mask=mask)
    context = read_only.ReadOnlyContext(4)
    rule = attention_rules.ReadOnlyForward(context, "a", noisy_alone=False, tokens=10)
    layout = {"skip_reshape": heads_in, "skip_output_reshape": heads_out}
    result = attended(attention_pytorch, parts, rule=rule, **layout)
    expected = expected if heads_out else expected.transpose(1, 2).flatten(2)
    assert torch.allclose(result, expected, atol=1e-5)


# --- An attention that ignores the override ---------------------------------------------------------


@pytest.fixture(params=["read-only context", "temporal windows"])
def arranged(request, run, tiny, make_latent):
    """A sampling whose attention must be arranged by our override."""
    if request.param == "read-only context":
        options = {"model": tiny, "z_ref": make_latent(5, 4, 4), "context": "read-only", "steps": 1}
        return lambda: run("SwiftI2V_SegmentSampler", **options)

    def sample_in_windows():
        model = run("SwiftI2V_TemporalWindows", model=tiny, window_frames=2)[0]
        text = [[torch.zeros(1, 8, 4096), {}]]
        with torch.inference_mode():
            options = (model, 0, 1, 1.0, "euler", "simple", text, text, make_latent(5, 4, 4), 0.5)
            return host_nodes.KSampler().sample(*options)

    return sample_in_windows


def test_an_attention_that_ignores_the_override_is_reported(arranged, monkeypatch):
    """The picture would follow another arrangement than the chosen one, and nobody would know."""
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch.__wrapped__)
    with pytest.raises(RuntimeError, match=r"does not call optimized_attention_override.*bidirectional"):
        arranged()


def test_an_attention_that_does_not_name_its_block_stops_the_run(arranged, monkeypatch):
    def without_block(*args, transformer_options, **kwargs):
        options = {key: value for key, value in transformer_options.items() if key != "block_index"}
        return attention_pytorch(*args, transformer_options=options, **kwargs)

    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", without_block)
    with pytest.raises(RuntimeError, match=r"passes no block_index.*bidirectional"):
        arranged()


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
def eager(pack, monkeypatch, plain_attention):
    """Compile without a compiler: what PyTorch remembers of a first run is the same."""
    monkeypatch.setattr(compiled_model, "COMPILER", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("how", [whole, blocks])
def test_compiled_models_remember_nothing_of_their_first_run(pack, run, tiny, make_latent, eager, how):
    def made(model, context, latent):
        given = {"z_ref": latent, "context": context, "denoise": 0.5, "steps": 2}
        return run("SwiftI2V_SegmentSampler", model=model, **given)[0]["samples"]

    compiled, short, long = how(pack, tiny), make_latent(4, 4, 4), make_latent(8, 4, 4, seed=1)
    text = [[torch.zeros(1, 8, 4096), {}]]
    with torch.inference_mode():  # no override at all, and the shape of a window
        options = (compiled, 0, 2, 1.0, "euler", "simple", text, text)
        host_nodes.KSampler().sample(*options, {"samples": short["samples"]})
    results = []
    for context, latent in (
        ("bidirectional", short),
        ("read-only", short),
        ("bidirectional", long),
    ):
        expected = made(tiny, context, latent)
        assert (made(compiled, context, latent) - expected).abs().max() <= 1e-5
        results.append(expected)
    assert (results[0] - results[1]).abs().max() > 1e-3  # what must not be mistaken for each other


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_each_length_is_compiled_once(pack, run, tiny, make_latent, eager, monkeypatch, context):
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled_model, "COMPILER", counting)
    compiled = compiled_model.with_compiled_blocks(tiny)
    counts = []
    for segments in (2, 5):  # windows of 4 and 5 latent frames
        latent = make_latent(1 + 3 * segments, 4, 4)
        given = {"z_ref": latent, "context": context, "denoise": 0.5, "steps": 2, "cfg": 3.0}
        run("SwiftI2V_SegmentSampler", model=compiled, **given)
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 0


def test_more_lengths_than_pytorch_allows_are_all_compiled(pack, run, tiny, make_latent, eager):
    compiled = compiled_model.with_compiled_blocks(tiny)
    counters = torch._dynamo.utils.counters["stats"]
    counts = [counters["unique_graphs"]]
    with torch._dynamo.config.patch(recompile_limit=1):
        for frames in (3, 4):
            given = {"z_ref": make_latent(frames, 4, 4), "denoise": 0.5, "steps": 1}
            run("SwiftI2V_SegmentSampler", model=compiled, **given)
            counts.append(counters["unique_graphs"])
            assert torch._dynamo.config.recompile_limit == 1
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


@pytest.mark.parametrize(
    ("node_id", "given"),
    [
        (
            "SwiftI2V_LoadStageI",
            {
                "high_noise_model": "tiny_stage1_motion.safetensors",
                "low_noise_model": "tiny_stage1_motion.safetensors",
                "high_noise_lora": "none",
                "low_noise_lora": "none",
            },
        ),
        ("SwiftI2V_LoadStageII", {"model_name": "tiny_stage2_detail.safetensors", "lora": "none"}),
    ],
)
def test_loaders_compile_the_blocks_if_asked(run, node_id, given):
    for model in run(node_id, weight_dtype="default", compile_blocks=True, **given):
        if isinstance(model, str):
            continue
        kwargs = model.model_options["torch_compile_kwargs"]
        assert (kwargs["backend"], kwargs["dynamic"]) == ("inductor", False)
        assert set(model.wrappers["apply_model"]) == {"torch.compile", "SwiftI2V"}
        assert model.get_model_object("model_sampling").shift == 5
    for model in run(node_id, weight_dtype="default", **given):
        assert isinstance(model, str) or "torch_compile_kwargs" not in model.model_options
