"""The attention override: what it computes, what it leaves alone, and that compiled models keep to it."""

import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch, attention_split
from comfy.ldm.wan.model import WanModel

PARTS = 2, 3, 10, 8
"""Batch, heads, tokens, channels of a head."""


@pytest.fixture(scope="module")
def attention(pack):
    return pack.modules["nodes.attention"]


@pytest.fixture
def chosen(attention, monkeypatch):
    """Make every attention one whose kernel we choose; holds the choices made."""
    calls, attend = [], attention.backend.attend_cudnn_first

    def spy(query, *args, **kwargs):
        calls.append(query.shape)
        return attend(query, *args, **kwargs)

    monkeypatch.setattr(attention.backend, "prefers_cudnn", lambda *facts: True)
    monkeypatch.setattr(attention.backend, "attend_cudnn_first", spy)
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
    return pack.host.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


def random_parts(heads_in):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(PARTS, generator=generator) for _ in range(3)]
    return parts if heads_in else [part.transpose(1, 2).flatten(2) for part in parts]


def options_with(pack, attention, users=None):
    options = {} if users is None else {attention.OVERRIDE: users}
    attention.install(options, pack.host.PLAIN_ATTENTION)
    return options


# --- The kernel -------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
def test_every_layout_is_the_hosts_attention(pack, attention, chosen, heads_in, heads_out):
    parts = random_parts(heads_in)
    layout = {"skip_reshape": heads_in, "skip_output_reshape": heads_out}
    options = options_with(pack, attention)
    ours = attention_pytorch(*parts, PARTS[1], **layout, transformer_options=options)
    theirs = attention_pytorch(*parts, PARTS[1], **layout)
    assert len(chosen) == 1
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_decision_is_made_from_what_is_attended(pack, attention, monkeypatch):
    facts = []
    monkeypatch.setattr(attention.backend, "nvidia_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention.backend, "prefers_cudnn", lambda *given: facts.append(given))
    options = options_with(pack, attention)
    query, key, value = random_parts(True)
    given = (query[:, :, :4], key, value)
    attention_pytorch(*given, PARTS[1], skip_reshape=True, transformer_options=options)
    flat = [part.transpose(1, 2).flatten(2) for part in given]
    attention_pytorch(*flat, PARTS[1], transformer_options=options)
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
def test_what_we_do_not_know_is_left_to_the_host(pack, attention, chosen, asked):
    parts, options = random_parts(True), options_with(pack, attention)
    given = {"skip_reshape": True, **asked}
    ours = attention_pytorch(*parts, PARTS[1], **given, transformer_options=options)
    assert torch.equal(ours, attention_pytorch(*parts, PARTS[1], **given))
    if "mask" in asked:  # ComfyUI may give it by place, too
        mask = asked["mask"]
        attention_pytorch(*parts, PARTS[1], mask, skip_reshape=True, transformer_options=options)
    assert chosen == []


def test_another_attention_of_the_host_is_left_alone(pack, attention, chosen):
    """As with --use-sage-attention: the user has chosen."""
    parts, options = random_parts(False), options_with(pack, attention)
    ours = attention_split(*parts, PARTS[1], transformer_options=options)
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


def test_the_users_override_decides_in_stage_one(pack, attention, stage_one, text):
    def users(attend, *args, **kwargs):
        return attend(*args, **kwargs)

    model = stage_one.clone()
    model.model_options["transformer_options"][attention.OVERRIDE] = users
    options = pack.host.motion_guider(model, *text, 1.0).model_options["transformer_options"]
    assert options[attention.OVERRIDE] is attention.override
    assert options[attention.BELOW].users is users
    assert model.model_options["transformer_options"] == {attention.OVERRIDE: users}


def test_stage_one_samples_with_the_chosen_kernel(
    pack, run, stage_one, vae, photo, plain_attention, chosen, monkeypatch
):
    given = {"model_high_noise": stage_one, "vae": vae, "image": photo, "steps": 1}
    given |= {"width": 64, "height": 32, "frames": 5}
    ours = run("SwiftI2V_MotionSampler", **given)[1]["samples"]
    assert chosen
    monkeypatch.setattr(pack.host, "motion_guider", pack.host.cfg_guider)
    theirs = run("SwiftI2V_MotionSampler", **given)[1]["samples"]
    assert (ours - theirs).abs().max() <= 1e-5


# --- Read-only context ------------------------------------------------------------------------------


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
def test_read_only_works_for_any_head_layout(pack, attention, heads_in, heads_out):
    """``[B, L, H * D]`` and ``[B, H, L, D]`` at both ends of the host's attention."""
    parts = random_parts(heads_in)
    mask = torch.ones(10, 10, dtype=torch.bool)
    mask[:4, 4:] = False
    expected = torch.nn.functional.scaled_dot_product_attention(*random_parts(True), attn_mask=mask)
    context = pack.modules["swifti2v_core.attention"].ReadOnlyContext(4)
    options = options_with(pack, attention)
    options[attention.READ_ONLY] = attention.ReadOnlyForward(context, "a", noisy_alone=False)
    layout = {"skip_reshape": heads_in, "skip_output_reshape": heads_out}
    result = attention_pytorch(*parts, PARTS[1], **layout, transformer_options=options | {"block_index": 0})
    expected = expected if heads_out else expected.transpose(1, 2).flatten(2)
    assert torch.allclose(result, expected, atol=1e-5)
