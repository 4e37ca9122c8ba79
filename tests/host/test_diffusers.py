"""The host's Wan model on a window with true positions against diffusers, in both key layouts."""

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors.torch import load_file

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"


class FrameRotary(WanRotaryPosEmbed):
    """diffusers' rotary embedding, with explicit time positions."""

    positions: tuple[int, ...] = ()

    def forward(self, hidden_states):
        longest = max(self.positions) + 1
        whole = hidden_states.new_empty(1, 1, longest, *hidden_states.shape[-2:])
        height, width = hidden_states.shape[-2] // 2, hidden_states.shape[-1] // 2
        parts = []
        for freqs in super().forward(whole):
            grid = freqs.unflatten(1, (longest, height * width))
            parts.append(grid[:, list(self.positions)].flatten(1, 2))
        return tuple(parts)


def diffusers_model(name, in_channels):
    state = load_file(TINY / f"{name}.safetensors")
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=in_channels,
        out_channels=48,
        text_dim=4096,
        ffn_dim=state["blocks.0.ffn.0.weight"].shape[0],
        num_layers=6,
    )
    converted = convert_wan_transformer_to_diffusers({k: v.float() for k, v in state.items()})
    model.load_state_dict(converted)
    rope = FrameRotary(128, (1, 2, 2), 1024)
    model.rope = rope
    return model.train(False), rope


@pytest.mark.parametrize(("name", "channels"), [("tiny_stage2_detail", 96), ("tiny_stage1_motion", 48)])
def test_host_and_diffusers_agree_on_a_window(pack, stage_two, stage_one, text, name, channels):
    host_model = stage_two if channels == 96 else stage_one
    positions, clean = (0, 9, 10, 11, 12), 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 5, 6, 8, generator=generator)
    timestep = torch.tensor([[0.0, 0.0, 937.5, 937.5, 937.5]])
    view = pack.windows.WindowView(positions, clean)
    executor = type("Executor", (), {"class_obj": host_model.model.diffusion_model})
    model, rope = diffusers_model(name, channels)
    rope.positions = positions
    with torch.inference_mode():
        ours = pack.windows.window_forward(
            executor, x, timestep, text[0][0][0], transformer_options={pack.windows.KEY: view}
        )
        per_token = timestep.repeat_interleave(3 * 4, dim=1)
        theirs = model(x, per_token, text[0][0][0], return_dict=False)[0]
        rope.positions = (0, 1, 2, 3, 4)
        elsewhere = model(x, per_token, text[0][0][0], return_dict=False)[0]
    assert (ours - theirs).norm() / theirs.norm() <= 1e-4
    assert (elsewhere - theirs).norm() / theirs.norm() > 1e-2  # the positions matter


def test_both_native_key_layouts_load_as_the_same_model(stage_two):
    """Bare keys, and keys under ComfyUI's ``model.diffusion_model.`` prefix."""
    import comfy.sd

    state = load_file(TINY / "tiny_stage2_detail.safetensors")
    prefixed = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    loaded = comfy.sd.load_diffusion_model_state_dict(prefixed)
    one, two = loaded.model.diffusion_model.state_dict(), stage_two.model.diffusion_model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k].to(one[k])) for k in one)
