"""Native names of Wan weights."""

import torch
from safetensors.torch import save_file
from tiny_training import NETWORK

from swifti2v_train.networks.native_keys import load_native, native_key, to_native
from swifti2v_train.networks.window_transformer import Shape, empty_network


def test_native_names_of_a_network_and_of_its_lora():
    names = {
        "blocks.1.attn1.to_out.0.weight": "blocks.1.self_attn.o.weight",
        "blocks.1.attn2.to_k.lora_A.weight": "blocks.1.cross_attn.k.lora_A.weight",
        "blocks.0.ffn.net.0.proj.bias": "blocks.0.ffn.0.bias",
        "blocks.0.norm2.weight": "blocks.0.norm3.weight",
        "blocks.0.attn1.norm_q.weight": "blocks.0.self_attn.norm_q.weight",
        "scale_shift_table": "head.modulation",
        "blocks.0.scale_shift_table": "blocks.0.modulation",
        "condition_embedder.time_proj.bias": "time_projection.1.bias",
        "proj_out.weight": "head.head.weight",
    }
    assert {key: native_key(key) for key in names} == names


def test_prefixed_weights_are_read_under_their_bare_names(tmp_path):
    state = to_native(empty_network(Shape.new(NETWORK, 48, 48)).state_dict())
    for prefix in ("", "diffusion_model.", "model.diffusion_model."):
        save_file(
            {f"{prefix}{key}": v.contiguous() for key, v in state.items()}, tmp_path / "p.safetensors"
        )
        read = load_native(tmp_path / "p.safetensors")
        assert read.keys() == state.keys()
        assert all(torch.equal(read[key], state[key]) for key in state)
