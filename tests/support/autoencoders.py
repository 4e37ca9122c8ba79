"""ComfyUI's Wan autoencoders, narrow and random, and how the tests run and watch them."""

import weakref

import torch
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.swifti2v_core.vae import strips as streaming
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def narrow_module(family):
    """Return the host's module, all its stages but few channels."""
    if family == "Wan2.2":
        return wan22.WanVAE(
            dim=8, dec_dim=8, z_dim=48, temperal_downsample=[False, True, True], num_res_blocks=2
        )
    return wan21.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True], num_res_blocks=2)


def with_random_weights(module):
    generator = torch.Generator().manual_seed(0)
    module.load_state_dict(
        {
            key: torch.ones(value.shape)
            if key.endswith("gamma")
            else torch.randn(value.shape, generator=generator) * 0.2
            for key, value in module.state_dict().items()
        }
    )
    return module.train(False)


def random_latent(module, latent_frames, height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, module.z_dim, latent_frames, height, width, generator=generator)


def raw(pixels):
    return pixels


def decoded(module, latent, plan):
    """Return a decoded clip ``[1, 3, F, H, W]``, put together from its bands, and their frames."""
    decoder = streaming.StripDecoder(module, plan, raw)
    with torch.inference_mode():
        parts = list(zip(decoder.bands(latent), decoder.decode(latent), strict=True))
    last, pixels = parts[-1]
    clip = last.room_for(last.frames.stop, pixels).fill_(float("nan"))
    for band, pixels in parts:
        band.of(clip).copy_(pixels)
    return clip.movedim(-1, 0)[None], [len(pixels) for _, pixels in parts]


def undivided(module, latent):
    with torch.inference_mode():
        return module.decode(latent)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


class Held(TorchDispatchMode):
    """Knows every tensor made while it is on, as long as somebody holds it."""

    def __init__(self):
        super().__init__()
        self._made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter):
                self._made.append(weakref.ref(tensor))
        return result

    def count(self):
        self._made = [made for made in self._made if made() is not None]
        alive = [tensor.untyped_storage() for made in self._made if (tensor := made()) is not None]
        return sum({storage._cdata: storage.nbytes() for storage in alive}.values())


def as_images(whole):
    return ((whole + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)
