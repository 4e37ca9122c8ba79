"""The tiny autoencoder and its training; tests/host/training/test_export.py compares it with ComfyUI's."""

import pytest
import torch
from PIL import Image
from tiny_training import project

from swifti2v_train import commands
from swifti2v_train.config import Autoencoder
from swifti2v_train.networks.tiny_vae import TinyVAE
from swifti2v_train.random_draws import generator
from swifti2v_train.tasks.autoencoder import (
    AutoencoderTask,
    laplacian_pyramid,
    random_crop,
    reconstruction_losses,
)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = torch.rand(12, 16, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    Image.fromarray(pixels.numpy()).resize((160, 120)).save(path)
    return path


def settings(photo, output="", **changes):
    small = {"width": 64, "height": 32, "frames": 5, "batch_size": 1, "steps": 16, "learning_rate": 1e-3}
    return Autoencoder(sources=(str(photo),), output=str(output), **{**small, **changes})


def test_frames_and_latents_have_the_published_shapes():
    network = TinyVAE()
    with torch.no_grad():
        latents = network.encode(torch.rand(1, 3, 9, 64, 96))
        assert latents.shape == (1, 48, 3, 4, 6)
        assert network.decode(latents).shape == (1, 3, 9, 64, 96)
        assert network.encode(torch.rand(1, 3, 1, 64, 96)).shape == (1, 48, 1, 4, 6)


def test_detail_of_a_flat_picture_is_none_and_of_a_checkerboard_all():
    flat = laplacian_pyramid(torch.full((1, 3, 16, 16), 0.3))
    assert [tuple(level.shape[-2:]) for level in flat] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert all(float(level.abs().max()) < 1e-6 for level in flat)
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).float()[None, None]
    levels = laplacian_pyramid(board)
    assert float(levels[0].abs().mean()) == pytest.approx(0.5)  # the mean gray is averaged away
    assert all(float(level.abs().max()) < 1e-6 for level in levels[1:])


def test_blur_costs_more_than_a_shift_of_color_with_the_same_error():
    truth = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool3d(truth, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    shifted = truth + (blurred - truth).abs().mean()
    plain = [float(reconstruction_losses(made, truth, 0)) for made in (blurred, shifted)]
    assert plain[0] == pytest.approx(plain[1], rel=1e-4)
    sharp = [float(reconstruction_losses(made, truth, 1)) for made in (blurred, shifted)]
    assert sharp[0] > 1.5 * sharp[1]


def test_samples_depend_on_their_number_alone(photo):
    one, two = (AutoencoderTask(settings(photo)) for _ in range(2))
    two._clip(3, 1)
    assert torch.equal(one._clip(5, 0), two._clip(5, 0))
    assert not torch.equal(one._clip(5, 0), one._clip(5, 1))
    assert one._clip(5, 0).shape == (3, 5, 32, 64)


@pytest.mark.parametrize("size", [(120, 160), (20, 30), (32, 64), (500, 64)])
def test_a_crop_has_the_proportions_asked_for(size):
    for seed in range(5):
        crop = random_crop(torch.zeros(1, *size, 3), 64, 32, generator(seed))
        assert crop.shape[2] / crop.shape[1] == pytest.approx(2, rel=0.1)


def test_training_lowers_the_loss(photo, tmp_path):
    losses = commands.autoencoder(project("", autoencoder=settings(photo, tmp_path))).losses
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4])


def test_without_photos_no_run_starts(tmp_path):
    with pytest.raises(ValueError, match="hold no usable file"):
        commands.autoencoder(project("", autoencoder=settings(tmp_path, tmp_path / "run")))
    assert not (tmp_path / "run").exists()
