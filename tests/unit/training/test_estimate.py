"""The estimate against PyTorch's real allocations and operations, at tiny size on the CPU."""

import pytest
import torch
from tiny_training import NETWORK, stage_two
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from swifti2v_train.config import Network
from swifti2v_train.loop.estimate import activation_bytes, estimate_training, forward_flops, window_tokens
from swifti2v_train.networks.window_transformer import Shape, empty_network, prepare_network

WIDE = Network(heads=3, layers=3, ffn_dim=640, text_dim=16)
FACTOR = 1.25
"""Largest ratio between the estimate of activations and the truth, either way."""


def forward(network, frames=5, height=8, width=12):
    latents = torch.randn(1, 96, frames, height, width)
    timesteps, text = torch.full((1, frames), 500.0), torch.randn(1, 8, 16)
    return network(latents, timesteps, text, [range(frames)], [2]), frames * (height // 2) * (width // 2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_backward_pass_saves(checkpointing):
    settings = stage_two("", network=WIDE, gradient_checkpointing=checkpointing)
    shape = Shape.new(WIDE, 96, 48)
    network = empty_network(shape)
    prepare_network(network, settings)
    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # keep the tensor, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result, tokens = forward(network)
    real = sum(size for size, _ in kept.values())
    if checkpointing:  # and one block at a time is recomputed
        real += activation_bytes(stage_two("", network=WIDE), shape, tokens) // 4
    assert real / FACTOR <= activation_bytes(settings, shape, tokens) <= real * FACTOR
    assert result.requires_grad


def test_states_are_counted_to_the_byte():
    network = empty_network(Shape.new(NETWORK, 96, 48))
    optimizer = torch.optim.AdamW(network.parameters())
    forward(network)[0].square().mean().backward()
    optimizer.step()
    weights = sum(value.nbytes for value in network.parameters())
    gradients = sum(value.grad.nbytes for value in network.parameters())
    moments = sum(s[name].nbytes for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    made = estimate_training(stage_two("", network=NETWORK), Shape.new(NETWORK, 96, 48), 100)
    assert made.states == weights + gradients + moments + weights  # the averages
    assert made.parameters == made.trained == sum(value.numel() for value in network.parameters())


def test_operations_are_what_pytorch_counts():
    shape = Shape.new(WIDE, 96, 48)
    network = empty_network(shape)
    # The counter does not know the fused attention of the CPU.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        _, tokens = forward(network)
    assert forward_flops(shape, tokens) == counter.get_total_flops()


def test_time_grows_with_batch_steps_and_rollouts_and_is_divided_among_processes():
    shape = Shape.new(NETWORK, 96, 48)

    def seconds(processes=1, **settings):
        plain = {"rollout_share": 0, "steps": 10}
        made = stage_two("", **{**plain, **settings})
        return estimate_training(made, shape, 100, processes, teraflops=1).seconds

    assert seconds(batch_size=8) == pytest.approx(2 * seconds(batch_size=4))
    assert seconds(steps=20) == pytest.approx(2 * seconds())
    assert seconds(2) == pytest.approx(seconds() / 2)
    assert seconds(gradient_checkpointing=True) == pytest.approx(seconds() * 4 / 3)
    assert seconds(rollout_share=0.5, rollout_steps=6) == pytest.approx(seconds() * 2)


def test_a_lora_needs_no_states_for_frozen_weights():
    shape = Shape.new(WIDE, 96, 48)
    full, lora = (
        estimate_training(stage_two("", network=WIDE, method=method, lora_rank=4, base="b"), shape, 100)
        for method in ("full", "lora")
    )
    assert lora.trained < full.trained / 4 and lora.parameters > full.parameters
    assert lora.states == 4 * lora.parameters + 16 * lora.trained
    shared = estimate_training(stage_two(""), shape, 100, 4, sharded=True)
    assert shared.states == estimate_training(stage_two(""), shape, 100).states // 4


def test_the_paper_s_window_has_its_tokens():
    assert window_tokens(stage_two(""), 21, 1408, 2560) == 17600
