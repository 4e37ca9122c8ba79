"""Wan autoencoders that are narrow enough for the CPU."""

import copy

import pytest
import torch

# ComfyUI is imported inside the fixtures: pytest may load this file before it has been booted.


@pytest.fixture(scope="module", params=["Wan2.2", "Wan2.1"])
def family(request):
    """Each kind of Wan autoencoder."""
    from autoencoders import narrow_module, with_random_weights

    return with_random_weights(narrow_module(request.param))


@pytest.fixture(scope="module")
def autoencoder():
    """A Wan2.2 autoencoder."""
    from autoencoders import narrow_module, with_random_weights

    return with_random_weights(narrow_module("Wan2.2"))


@pytest.fixture(scope="module")
def latent(autoencoder):
    """A clip of three latent frames."""
    from autoencoders import random_latent

    return random_latent(autoencoder, 3, 3, 5)


@pytest.fixture(scope="module")
def whole(autoencoder, latent):
    """The clip, decoded by ComfyUI undivided."""
    with torch.inference_mode():
        return autoencoder.decode(latent)


@pytest.fixture
def host_vae(autoencoder, vae):
    """A copy of the tiny VAE object with the streaming module in it, values as the Wan2.2 VAE has them."""
    from comfy.model_patcher import ModelPatcher

    wrapped = copy.copy(vae)
    wrapped.first_stage_model = autoencoder
    wrapped.patcher = ModelPatcher(autoencoder, vae.patcher.load_device, vae.patcher.offload_device)
    wrapped.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
    wrapped.process_input = lambda image: image * 2.0 - 1.0
    return wrapped
