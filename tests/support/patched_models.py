"""Clones of a MODEL with one change each, as other nodes make them."""

import comfy.sd
import torch


def lora(model):
    """Return a clone with a LoRA on one weight of a block, as ComfyUI's loader makes it."""
    key = "diffusion_model.blocks.0.self_attn.q.weight"
    out_dim, in_dim = model.model.state_dict()[key].shape
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{key.removesuffix('.weight')}.lora_{name}.weight": torch.randn(shape, generator=generator)
        for name, shape in (("up", (out_dim, 2)), ("down", (2, in_dim)))
    }
    return comfy.sd.load_lora_for_models(model, None, weights, 0.5, 0)[0]


def with_option(model):
    """Return a clone with a function in its options."""
    clone = model.clone()
    scale = 0.5

    def scaled(args):
        return args["cond"] * scale + args["uncond"] * (1 - scale)

    clone.set_model_sampler_cfg_function(scaled)
    return clone


def with_other_weight(model):
    """Return a clone with a patch on a weight outside the blocks."""
    clone = model.clone()
    key = "diffusion_model.head.head.bias"
    clone.add_patches({key: ("diff", (torch.full_like(model.model.state_dict()[key], 0.1),))})
    return clone


class Around(torch.nn.Module):
    """A module around one of the network's, as another pack may put it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def with_module(model):
    """Return a clone with a module of the network replaced."""
    clone, name = model.clone(), "diffusion_model.blocks.0.cross_attn"
    clone.add_object_patch(name, Around(clone.get_model_object(name)))
    return clone


def with_compute_dtype(model):
    """Return a clone that computes in float32."""
    clone = model.clone()
    clone.set_model_compute_dtype(torch.float32)
    return clone
