"""The attention that a quantized checkpoint asks for, and networks in which a rule cannot be kept."""

from types import SimpleNamespace

import comfy.ops
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import attention, attention_rules, compiled_model, forward, models
from swifti2v.swifti2v_core.attention.read_only import ReadOnlyContext

import nodes as host_nodes

TEXT = 8
CONTEXTS = ["bidirectional", "read-only", "temporal"]


@pytest.fixture(scope="module")
def tiny(pack):
    """A random plain Stage II model with two blocks."""
    sizes = {"in_dim": 48, "out_dim": 48, "dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 2}
    network = WanModel(model_type="t2v", operations=comfy.ops.manual_cast, **sizes)
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


@pytest.fixture
def sampled(run, make_latent):
    """Sample a short latent with a model, by the segment sampler or ComfyUI's own."""
    latent = make_latent(5, 4, 4)

    def sample(model, context):
        if context != "temporal":
            given = {"z_ref": latent, "context": context, "denoise": 0.5, "steps": 2}
            return run("SwiftI2V_SegmentSampler", model=model, **given)[0]["samples"]
        model = run("SwiftI2V_TemporalWindows", model=model, window_frames=2)[0]
        generator = torch.Generator().manual_seed(1)
        text = [[torch.randn(1, TEXT, 4096, generator=generator), {}]]
        with torch.inference_mode():
            options = (model, 3, 2, 1.0, "euler", "simple", text, text, latent, 0.5)
            return host_nodes.KSampler().sample(*options)[0]["samples"]

    return sample


# --- Preferred attention ----------------------------------------------------------------------------


class Quantized:
    """Stand-in for a checkpoint whose layers name their attention, and for ComfyUI 0.36, which obeys.

    ComfyUI itself forgets the name wherever it finds an override. Each preferred attention is weaker than
    PyTorch's, by another factor in self-attention than in attention to the text.
    """

    def __init__(self, network, monkeypatch):
        self.network, self.overrides, self.asked = network, [], 0
        self.calls = {"self_attn": [], "cross_attn": []}
        for block in network.blocks:
            for name, factor in (("self_attn", 0.5), ("cross_attn", 0.25)):
                wish = SimpleNamespace(function=self.preferred(name, factor))
                monkeypatch.setattr(getattr(block, name), "comfy_attention", wish, raising=False)
        monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", self.attend)

    def preferred(self, name, factor):
        def attend(query, key, value, heads, **kwargs):
            self.calls[name].append(key.shape[1])
            return factor * attention_pytorch(query, key, value, heads, **kwargs)

        return attend

    def attend(self, query, key, value, heads, transformer_options):
        self.asked += 1
        override = transformer_options.get(attention.OVERRIDE)
        self.overrides.append(override)
        named = {"transformer_options": transformer_options, "_inside_attn_wrapper": True}
        if override is not None:
            return override(attention.PLAIN_ATTENTION, query, key, value, heads, **named)
        block = self.network.blocks[transformer_options["block_index"]]
        layer = block.cross_attn if key.shape[1] == TEXT else block.self_attn
        return layer.comfy_attention.function(query, key, value, heads, **named)


@pytest.fixture
def quantized(tiny, monkeypatch):
    return Quantized(tiny.model.diffusion_model, monkeypatch)


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(compiled_model, "COMPILER", "eager")
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_checkpoints_attention_is_used_in_every_context(sampled, tiny, quantized, context):
    sampled(tiny, context)
    own, text = quantized.calls["self_attn"], quantized.calls["cross_attn"]
    assert own and text and set(text) == {TEXT}
    assert len(own) + len(text) >= quantized.asked > 0  # a rule divides a self-attention
    ours = None if context == "bidirectional" else attention.override
    assert set(quantized.overrides) == {ours}


@pytest.mark.parametrize("context", ["bidirectional", "temporal"])
def test_the_checkpoints_attention_is_used_in_compiled_blocks(sampled, tiny, monkeypatch, eager, context):
    network = tiny.model.diffusion_model
    expected = sampled(tiny, context)
    with monkeypatch.context() as patch:
        Quantized(network, patch)
        theirs = sampled(tiny, context)
    # Compiled code is not to see the stand-ins' lists, so they are reached as the layers' wishes alone.
    quantized = Quantized(network, monkeypatch)
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention_pytorch)
    ours = sampled(compiled_model.with_compiled_blocks(tiny), context)
    assert quantized.calls["self_attn"] and set(quantized.calls["cross_attn"]) == {TEXT}
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - expected).abs().max() > 1e-3


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_users_override_comes_before_the_checkpoints_attention(sampled, tiny, quantized, context):
    model, calls = tiny.clone(), []

    def users(attend, *args, **kwargs):
        calls.append(attend)
        return attend(*args, **kwargs)

    model.model_options["transformer_options"][attention.OVERRIDE] = users
    sampled(model, context)
    assert calls and set(calls) == {attention.PLAIN_ATTENTION}
    assert quantized.calls == {"self_attn": [], "cross_attn": []}


@pytest.mark.parametrize("context", CONTEXTS)
def test_ours_is_there_only_where_it_has_something_to_do(sampled, tiny, monkeypatch, context):
    seen = set()

    def spy(*args, transformer_options, **kwargs):
        seen.add(transformer_options.get(attention.OVERRIDE))
        return attention_pytorch(*args, transformer_options=transformer_options, **kwargs)

    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", spy)
    sampled(tiny, context)
    assert seen == {None if context == "bidirectional" else attention.override}
    seen.clear()
    monkeypatch.setattr(attention.kernels, "prefers_cudnn", lambda *facts: True)
    sampled(tiny, context)
    assert seen == {attention.override}


# --- What is refused --------------------------------------------------------------------------------


def temporal():
    return attention_rules.TemporalForward(2, 6, 4)


def read_only(noisy_alone=False):
    return attention_rules.ReadOnlyForward(ReadOnlyContext(8), "a", noisy_alone, tokens=24)


def attend(rule, query, key, block=0, users=None, **kwargs):
    """Attend once, from ``query`` to ``key`` tokens, in a forward with a text of `TEXT` tokens."""
    network = SimpleNamespace(blocks=[SimpleNamespace()] * 2)
    text, parts = torch.zeros(1, TEXT, 8), [torch.zeros(1, n, 8) for n in (query, key, key)]
    planned = forward.plan_forward(network, parts[0], text, {}, rule)

    def network_forward(transformer_options):
        if block is not None:
            transformer_options["block_index"] = block
        return attention_pytorch(*parts, 1, transformer_options=transformer_options, **kwargs)

    return forward.run_forward(planned, network_forward, (), {}, {})


BOTH = pytest.mark.parametrize("rule", [temporal, read_only])


@BOTH
def test_self_attention_that_goes_past_us_is_refused(rule):
    """As with an attention that another node computes itself: the text's would be taken for it."""
    with pytest.raises(RuntimeError, match=r"computes the self-attention of block 1 itself.*remove"):
        attend(rule(), 24, TEXT, block=1)


@BOTH
@pytest.mark.parametrize(("query", "key"), [(28, 28), (24, 28)])
def test_references_in_the_sequence_are_refused(rule, query, key):
    with pytest.raises(ValueError, match=f"from {query} to {key} tokens, but .* 24.*remove the node"):
        attend(rule(), query, key)


@BOTH
def test_masked_self_attention_is_refused(rule):
    with pytest.raises(ValueError, match=r"masks its self-attention.*remove"):
        attend(rule(), 24, 24, mask=torch.ones(24, 24, dtype=torch.bool))


@BOTH
def test_an_attention_that_names_no_block_is_refused(rule):
    with pytest.raises(RuntimeError, match=r"no block_index.*choose bidirectional context, or remove"):
        attend(rule(), 24, 24, block=None)


def test_a_block_that_did_not_run_when_the_context_was_kept_is_refused():
    with pytest.raises(RuntimeError, match="Block 0 runs in this step but did not in the segment's first"):
        attend(read_only(noisy_alone=True), 24, 24)


@BOTH
def test_a_network_that_never_asks_is_refused(rule):
    planned = forward.plan_forward(None, None, torch.zeros(1, TEXT, 8), {}, rule())
    with pytest.raises(RuntimeError, match="choose bidirectional context, or remove"):
        forward.run_forward(planned, lambda options: torch.zeros(1), (), {}, {})


def test_a_refusal_leaves_no_forward_running():
    with pytest.raises(ValueError, match="masks"):
        attend(temporal(), 24, 24, mask=torch.ones(24, 24, dtype=torch.bool))
    assert attention.running() is None


def test_options_that_outlive_their_forward_attend_as_without_us():
    parts = [torch.randn(1, 24, 8) for _ in range(3)]
    options = {attention.OVERRIDE: attention.override, "block_index": 0}
    ours = attention_pytorch(*parts, 1, transformer_options=options)
    assert torch.equal(ours, attention_pytorch(*parts, 1))
