"""Which autoencoders are streamed."""

import copy

import pytest
import torch
from swifti2v.nodes.comfyui.vae import streams
from swifti2v.nodes.pipeline.decode import decode_integers


def with_temporal_kernel(vae, length):
    """A VAE whose first convolution of the decoder sees ``length`` frames."""
    changed = copy.copy(vae)
    changed.first_stage_model = copy.deepcopy(vae.first_stage_model)
    convolution = changed.first_stage_model.decoder.conv1
    weight = convolution.weight
    convolution.kernel_size = (length, *convolution.kernel_size[1:])
    convolution.weight = torch.nn.Parameter(weight.new_zeros(*weight.shape[:2], length, *weight.shape[3:]))
    return changed


def test_wan_autoencoders_stream(streaming_vae, vae16):
    assert streams(streaming_vae) and streams(vae16)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_an_autoencoder_of_another_temporal_kernel_is_left_to_comfyui(streaming_vae, length):
    vae = with_temporal_kernel(streaming_vae, length)
    assert not streams(vae)
    vae.decode = lambda latent: torch.full((1, 9, 32, 32, 3), 0.5)
    frames = list(decode_integers(vae, torch.zeros(1, 48, 3, 2, 2)))
    assert len(frames) == 9 and frames[0].dtype == torch.uint8


def test_the_kernel_of_wan_streams_after_a_copy(streaming_vae):
    assert streams(with_temporal_kernel(streaming_vae, 3))
