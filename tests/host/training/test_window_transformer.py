"""The trained network (diffusers) against the host's Wan model, on windows with true positions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from swifti2v.nodes.comfyui import window_model

from swifti2v_core.attention.read_only import ReadOnlyContext
from swifti2v_train.networks.native_keys import load_native, to_native
from swifti2v_train.networks.window_transformer import network_from

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
POSITIONS, CLEAN = (0, 9, 10, 11, 12), 2


def trained(name):
    state = {key: value.float() for key, value in load_native(TINY / f"{name}.safetensors").items()}
    return network_from(state).train(False)


def window(channels):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, 5, 6, 8, generator=generator)


def host_velocity(pack, model, x, timestep, text, read_only=None):
    options = {window_model.WINDOW_OPTION: window_model.WindowView(POSITIONS, CLEAN, read_only)}
    executor = type("Executor", (), {"class_obj": model.model.diffusion_model})
    return window_model.window_forward(executor, x, timestep, text, transformer_options=options)


def distance(one, two):
    return (one - two).norm() / two.norm()


@pytest.mark.parametrize(("name", "channels"), [("tiny_stage2_detail", 96), ("tiny_stage1_motion", 48)])
def test_host_and_diffusers_agree_on_a_window(pack, stage_two, stage_one, text, name, channels):
    host_model = stage_two if channels == 96 else stage_one
    x, timestep = window(channels), torch.tensor([[0.0, 0.0, 937.5, 937.5, 937.5]])
    network = trained(name)
    with torch.inference_mode():
        theirs = host_velocity(pack, host_model, x, timestep, text[0][0][0])
        ours = network(x, timestep, text[0][0][0], [POSITIONS], [CLEAN])
        elsewhere = network(x, timestep, text[0][0][0], [range(5)], [CLEAN])
    assert distance(ours, theirs) <= 1e-4
    assert distance(elsewhere, theirs) > 1e-2  # the positions matter


def test_read_only_context_is_what_the_nodes_compute(pack, stage_two, text):
    x, timestep = window(96), torch.tensor([[0.0, 0.0, 937.5, 937.5, 937.5]])
    network = trained("tiny_stage2_detail")
    with torch.inference_mode():
        bidirectional = network(x, timestep, text[0][0][0], [POSITIONS], [CLEAN])
        network.use_read_only_context()
        ours = network(x, timestep, text[0][0][0], [POSITIONS], [CLEAN])
        context = ReadOnlyContext(CLEAN * 3 * 4)
        first = host_velocity(pack, stage_two, x, timestep, text[0][0][0], context)
        # The second step leaves the clean frames out and uses what was kept of them.
        second = host_velocity(pack, stage_two, x, timestep, text[0][0][0], context)
    assert distance(ours[:, :, CLEAN:], first[:, :, CLEAN:]) <= 1e-4
    assert distance(ours[:, :, CLEAN:], second[:, :, CLEAN:]) <= 1e-4
    assert distance(ours[:, :, CLEAN:], bidirectional[:, :, CLEAN:]) > 1e-3


def test_the_kind_of_a14b_agrees_with_the_host(pack, experts):
    """36 channels and one timestep for all frames, on random weights."""
    host_model = experts[0].model.diffusion_model
    network = network_from({k: v.float() for k, v in host_model.state_dict().items()}).train(False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 36, 3, 6, 8, generator=generator)
    text = torch.randn(2, 5, 4096, generator=generator)
    timestep = torch.tensor([900.0, 300.0])
    with torch.inference_mode():
        theirs = host_model(x, timestep, text)
        ours = network(x, timestep, text, [range(3)] * 2, [0] * 2)
    assert distance(ours, theirs) <= 1e-4


@pytest.mark.parametrize("name", ["tiny_stage2_detail", "tiny_stage1_motion"])
def test_native_weights_come_back_as_they_were(name):
    state = load_file(TINY / f"{name}.safetensors")
    back = to_native(network_from({k: v.float() for k, v in state.items()}).state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key].half(), state[key]) for key in state)


def test_both_native_key_layouts_load_as_the_same_model(stage_two):
    """Bare keys, and keys under ComfyUI's ``model.diffusion_model.`` prefix."""
    import comfy.sd

    state = load_file(TINY / "tiny_stage2_detail.safetensors")
    prefixed = {f"model.diffusion_model.{key}": value for key, value in state.items()}
    loaded = comfy.sd.load_diffusion_model_state_dict(prefixed)
    one, two = loaded.model.diffusion_model.state_dict(), stage_two.model.diffusion_model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k].to(one[k])) for k in one)
