"""The trained network without ComfyUI, see tests/host/training/test_window_transformer.py for that."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors.torch import save_file
from tiny_training import NETWORK, stage_two

from swifti2v_train.networks.native_keys import to_native, widen_patch_embedding
from swifti2v_train.networks.window_transformer import (
    FrameRotary,
    Shape,
    add_lora,
    build_network,
    empty_network,
    network_from,
    training_shape,
)


def random_network(in_channels, seed=0):
    torch.manual_seed(seed)
    network = empty_network(Shape.new(NETWORK, in_channels, 48))
    torch.nn.init.normal_(network.proj_out.weight)
    return network


def inputs(channels, batch=1):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, channels, 4, 4, 6, generator=generator)
    timesteps = torch.tensor([[0.0, 0.0, 700.0, 700.0]]).expand(batch, -1)
    return latents, timesteps, torch.randn(batch, 3, NETWORK.text_dim, generator=generator)


def saved(network, path):
    save_file({key: value.contiguous() for key, value in to_native(network.state_dict()).items()}, path)
    return str(path)


def test_positions_counted_from_zero_are_diffusers_own():
    ours, theirs = FrameRotary(128, (1, 2, 2), 1024), WanRotaryPosEmbed(128, (1, 2, 2), 1024)
    latents = torch.empty(2, 96, 5, 6, 8)
    ours.positions = [range(5), range(5)]
    for one, two in zip(ours(latents), theirs(latents), strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[0])
    ours.positions = [(0, 3, 4), (0, 7, 8)]
    later = theirs(torch.empty(1, 96, 9, 6, 8))[0].unflatten(1, (9, 12))
    assert torch.equal(ours(torch.empty(2, 96, 3, 6, 8))[0][1].unflatten(0, (3, 12)), later[0, [0, 7, 8]])


def test_a_widened_network_begins_as_its_base(tmp_path):
    base = random_network(48)
    settings = stage_two("", base=saved(base, tmp_path / "base.safetensors"))
    wide = build_network(settings, training_shape(settings, 96, 48))
    latents, timesteps, text = inputs(96)
    with torch.no_grad():
        expected = base(latents[:, :48], timesteps, text, [range(4)], [2])
        assert torch.equal(wide(latents, timesteps, text, [range(4)], [2]), expected)
    assert wide.patch_embedding.weight.shape[1] == 96 and all(p.requires_grad for p in wide.parameters())


def test_what_cannot_be_trained_is_refused_by_its_header(tmp_path):
    state = {key: v.contiguous() for key, v in to_native(random_network(48).state_dict()).items()}

    def refused(values, message, **settings):
        save_file(values, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=message):
            training_shape(stage_two("", base=str(tmp_path / "w.safetensors"), **settings), 96, 48)

    refused({"weight": torch.zeros(1)}, "holds no Wan model")
    refused({**state, "img_emb.proj.0.bias": torch.zeros(1)}, "has an image embedding")
    fp8 = {**state, "head.head.weight": state["head.head.weight"].to(torch.float8_e4m3fn)}
    refused(fp8, "is quantized .*name the fp16")
    refused(
        widen_patch_embedding(state, 100),
        "has 100 input and 48 output channels, but this training needs 96",
    )
    with pytest.raises(ValueError, match=r'base is "", but a LoRA needs existing weights'):
        training_shape(stage_two("", method="lora"), 96, 48)


def test_clean_tokens_of_read_only_context_do_not_depend_on_noisy_ones():
    """Also through the backward: what a clean frame becomes has no gradient to a noisy frame."""
    network = random_network(96)
    latents, timesteps, text = inputs(96, batch=2)
    latents.requires_grad_()
    clean = [2, 1]

    def gradient_at_noisy_frames():
        result = network(latents, timesteps, text, [range(4)] * 2, clean)
        parts = [result[sample, :, :frames].square().sum() for sample, frames in enumerate(clean)]
        gradient = torch.autograd.grad(sum(parts), latents)[0]
        return [float(gradient[sample, :, frames:].abs().max()) for sample, frames in enumerate(clean)]

    assert all(value > 0 for value in gradient_at_noisy_frames())
    network.use_read_only_context()
    assert gradient_at_noisy_frames() == [0, 0]
    network.enable_gradient_checkpointing()
    assert gradient_at_noisy_frames() == [0, 0]


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        network = random_network(96)
        if checkpointing:
            network.enable_gradient_checkpointing()
        latents, timesteps, text = inputs(96)
        network(latents, timesteps, text, [(0, 5, 6, 7)], [2]).square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


def test_a_lora_trains_its_factors_and_the_patch_embedding():
    network = random_network(96)
    before = network(*inputs(96), [range(4)], [2])
    add_lora(network, stage_two("", method="lora", lora_rank=2, precision="bf16"))
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert {name for name in trained if "lora" not in name} == {
        "patch_embedding.weight",
        "patch_embedding.bias",
    }
    assert len([name for name in trained if "lora_A" in name]) == NETWORK.layers * 10
    assert {value.dtype for value in network.parameters() if value.requires_grad} == {torch.float32}
    assert network.blocks[0].attn1.to_q.base_layer.weight.dtype == torch.bfloat16
    assert network.blocks[0].scale_shift_table.dtype == torch.float32
    network.float()
    after = network(*inputs(96), [range(4)], [2])
    assert float(((after - before).norm() / before.norm()).detach()) < 0.02  # bf16, nothing learned yet


def test_native_weights_make_the_same_network_again():
    network = random_network(96)
    again = network_from(to_native(network.state_dict()))
    with torch.no_grad():
        assert torch.equal(network(*inputs(96), [range(4)], [2]), again(*inputs(96), [range(4)], [2]))
