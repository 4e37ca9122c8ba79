"""Compare a network under FSDP with a whole one on the CPU; tests/unit/training/test_fsdp.py starts this.

Accelerate shards on GPUs only, so this calls PyTorch's ``fully_shard`` the way accelerate does.
"""

import os

import torch
import torch.distributed as dist
from diffusers.training_utils import EMAModel
from tiny_training import NETWORK
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from swifti2v_train.loop.checkpoints import fill_sharded, whole_tensor
from swifti2v_train.networks.window_transformer import Shape, empty_network

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))


def make():
    torch.manual_seed(0)
    network = empty_network(Shape.new(NETWORK, 96, 48))
    torch.nn.init.normal_(network.proj_out.weight)
    network.enable_gradient_checkpointing()
    return network


def step(network, seed):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 96, 4, 4, 6, generator=generator)
    timesteps, text = (
        torch.tensor([[0.0, 0, 500, 500]]),
        torch.randn(1, 3, NETWORK.text_dim, generator=generator),
    )
    with torch.no_grad():  # like a rollout before the step
        network(latents, timesteps, text, [(0, 1, 2, 3)], [1])
    loss = network(latents, timesteps, text, [(0, 5, 6, 7)], [2]).square().mean()
    loss.backward()
    return loss.detach()


def train(network, averaged):
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    for seed in range(3):
        step(network, seed)
        optimizer.step()
        optimizer.zero_grad()
        averaged.step(network.parameters())
    return {name: whole_tensor(v) for name, v in network.named_parameters()}


plain, sharded = make(), make()
for block in sharded.blocks:
    fully_shard(block, mesh=mesh)
fully_shard(sharded, mesh=mesh)
plain_average, average = EMAModel(plain.parameters(), decay=0.5), EMAModel(sharded.parameters(), decay=0.5)
expected, found = train(plain, plain_average), train(sharded, average)
assert any(hasattr(value, "full_tensor") for value in average.shadow_params)
for name in expected:
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
for one, two in zip(plain_average.shadow_params, average.shadow_params, strict=True):
    torch.testing.assert_close(whole_tensor(two), one.detach(), rtol=1e-5, atol=1e-6)
    fill_sharded(two, torch.full_like(one, 3.0))
    assert whole_tensor(two).eq(3).all()
dist.barrier()
if dist.get_rank() == 0:
    print("sharded as whole", flush=True)
# Skip the interpreter's shutdown, in which gloo's threads sometimes abort a finished process.
os._exit(0)
