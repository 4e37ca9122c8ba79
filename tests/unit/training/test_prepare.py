"""The prepare command: its tensors computed by hand, interruptions, and refused settings."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_training import changed

from swifti2v_train.config import Config, Data, Prepare, save_config
from swifti2v_train.data import prepare
from swifti2v_train.data.clips import find_sources, make_clips
from swifti2v_train.data.dataset import Dataset
from swifti2v_train.data.stage_transition import denoise_again, to_video, transition_sigmas
from swifti2v_train.networks.autoencoder import load_autoencoder

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests" / "assets" / "tiny"
SETTINGS = Prepare(
    sources=(str(TINY / "photos"),),
    autoencoder=str(TINY / "tiny_vae48.safetensors"),
    stage_one=str(TINY / "tiny_stage1_motion.safetensors"),
    width=128,
    height=64,
    motion_width=64,
    motion_height=32,
    frames=5,
    shard_megabytes=0.001,  # every clip fills a shard
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A dataset of three photos, made in one go."""
    folder = tmp_path_factory.mktemp("whole")
    prepare.run(Config(data=Data(folder=str(folder)), prepare=SETTINGS))
    return folder


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder(SETTINGS.autoencoder)


def test_tensors_are_as_the_dataset_documents_them(whole, autoencoder):
    dataset = Dataset(whole)
    truths = list(make_clips(SETTINGS, find_sources(SETTINGS.sources)))
    assert [clip.name for clip in dataset.clips] == [truth.name for truth in truths]
    for number, (clip, truth) in enumerate(zip(dataset.clips, truths, strict=True)):
        video = truth.frames.permute(3, 0, 1, 2)[None]
        small = F.avg_pool2d(truth.frames.permute(0, 3, 1, 2), 2)
        large = F.interpolate(small, (64, 128), mode="bicubic", antialias=True).clamp(0, 1)
        large[0] = video[0, :, 0]
        small, large = (each.transpose(0, 1)[None] for each in (small, large))
        for found, pixels in (
            (dataset.latents(number), video),
            (dataset.motion(number), small),
            (dataset.reference(number, 0), large),
        ):
            photo, later = autoencoder.encode(pixels[:, :, :1]), autoencoder.encode(pixels)[:, :, 1:]
            assert found.shape == (48, 2, pixels.shape[3] // 16, pixels.shape[4] // 16)
            assert torch.allclose(found, torch.cat((photo, later), dim=2)[0], atol=5e-3)
        assert (clip.width, clip.height, clip.fps, clip.latent_frames) == (128, 64, 24.0, 2)
        assert clip.sigmas[0] == 0 and 0.2 <= clip.sigmas[1] < 0.6
        softened = dataset.reference(number, 1)
        assert torch.equal(softened[:, 0], dataset.reference(number, 0)[:, 0])
        assert (softened - dataset.reference(number, 0))[:, 1].abs().mean() > 0.02
    assert len({clip.sigmas for clip in dataset.clips}) == 3


class Exact:
    """A network that knows the truth: Euler's method arrives there in any number of steps."""

    def __init__(self, truth):
        self.truth, self.sigmas = truth, []

    def __call__(self, noisy, timesteps, text, positions, clean):
        assert torch.equal(noisy[:, :, 0], self.truth[:, :, 0]) and clean == [1]
        assert timesteps[0][0] == 0 and positions == [range(3)]
        sigma = timesteps[0][1] / 1000
        self.sigmas.append(float(sigma))
        return (noisy - self.truth) / sigma


def test_stage_one_starts_at_the_sigma_and_arrives_at_its_own_clip(autoencoder):
    generator = torch.Generator().manual_seed(0)
    truth, noise = (torch.randn(1, 48, 3, 2, 4, generator=generator) for _ in range(2))
    network = Exact(truth)
    made = denoise_again(network, autoencoder, truth, truth, torch.zeros(1, 8, 16), noise, 0.5, 2)
    assert torch.allclose(made, autoencoder.decode(truth)[0].permute(1, 2, 3, 0).clamp(0, 1), atol=1e-4)
    # Unshifted, 0.5 is 1/6; half of that is 1/12, shifted 5/12 / (1 + 4/12) = 5/16.
    assert network.sigmas == pytest.approx([0.5, 5 / 16])
    assert transition_sigmas(0.5, 2).tolist() == pytest.approx([0.5, 5 / 16, 0])


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from swifti2v_train import config
from swifti2v_train.data import prepare
moments, replace = [0], os.replace
def end(source, target):
    moments[0] += 1
    if moments[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = end
prepare.run(config.load_config(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [3, 4])  # the second shard, and the index after it
def test_a_killed_run_resumes_and_makes_no_clip_twice(whole, tmp_path, monkeypatch, moment):
    config = Config(data=Data(folder=str(tmp_path / "data")), prepare=SETTINGS)
    save_config(config, tmp_path / "config.yaml")
    words = [sys.executable, "-c", KILLED, str(ROOT), str(tmp_path / "config.yaml"), str(moment)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -9
    assert len(Dataset(tmp_path / "data")) == 1
    rendered, render = [], prepare.Encoder.tensors
    monkeypatch.setattr(
        prepare.Encoder, "tensors", lambda self, clip: rendered.append(clip.name) or render(self, clip)
    )
    prepare.run(config)
    names = [clip.name for clip in Dataset(whole).clips]
    assert rendered == names[1:]
    prepare.run(config)
    assert rendered == names[1:]
    for shard in sorted(whole.glob("*.safetensors")):
        one, other = load_file(shard), load_file(tmp_path / "data" / shard.name)
        assert one.keys() == other.keys()
        assert all((one[key].float() - other[key].float()).abs().max() < 5e-3 for key in one)


def test_a_shard_is_written_after_some_minutes_even_if_not_full(tmp_path, monkeypatch):
    settings = changed(SETTINGS, stage_one="", shard_megabytes=1024.0)
    prepare.run(Config(data=Data(folder=str(tmp_path / "full")), prepare=settings))
    assert {clip.shard for clip in Dataset(tmp_path / "full").clips} == {"shard-00000.safetensors"}
    monkeypatch.setattr(prepare, "MOST_LOST_SECONDS", 0)
    prepare.run(Config(data=Data(folder=str(tmp_path / "timed")), prepare=settings))
    assert len({clip.shard for clip in Dataset(tmp_path / "timed").clips}) == 3


def test_clips_made_with_other_settings_are_not_mixed(whole):
    for change, words in (
        ({"seed": 1}, "seed is 1, but the clips in .* were made with 0; set it back"),
        ({"lowest_sigma": 0.3}, "lowest_sigma is 0.3, but the clips"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare.run(Config(data=Data(folder=str(whole)), prepare=changed(SETTINGS, **change)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 120}, "both sides must be multiples of 32; the nearest valid size is 128x64"),
        ({"frames": 6}, "must be 4n.1 and at least 5; the nearest valid number is 5"),
        ({"motion_height": 64}, "must have the proportions of 128x64; the nearest valid height is 32"),
        ({"lowest_sigma": 0.7}, "lowest_sigma is 0.7, but must be above 0 and at most highest_sigma, 0.6"),
        ({"sources": ("nowhere",)}, "The source nowhere does not exist"),
        (
            {"sources": (str(TINY.parent.parent / "unit"),)},
            "hold no usable file",
        ),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        prepare.run(Config(data=Data(folder=str(tmp_path / "new")), prepare=changed(SETTINGS, **change)))
    assert not (tmp_path / "new").exists()


def test_a14b_gets_its_photo_and_gray_frames():
    class Sixteen:
        """The shapes of Wan2.1's autoencoder: a cell is 8x8 pixels and four frames, 16 channels."""

        latent_channels, spatial_factor = 16, 8

        def encode(self, video):
            frames = video[:, :1, ::4, ::8, ::8]
            return frames.expand(-1, 16, -1, -1, -1).clone()

    settings = changed(SETTINGS, stage_one="")
    encoder = prepare.Encoder(settings)
    encoder.motion_autoencoder = Sixteen()
    truth = next(make_clips(settings, find_sources(settings.sources)))
    tensors, sigmas = encoder.tensors(truth)
    assert sigmas == (0.0,) and tensors["references"].shape == (1, 48, 2, 4, 8)
    assert tensors["motion"].shape == tensors["motion_photo"].shape == (16, 2, 4, 8)
    assert torch.equal(tensors["motion_photo"][:, 0], tensors["motion"][:, 0])
    assert torch.equal(tensors["motion_photo"][:, 1], torch.full((16, 4, 8), 0.5))
    assert to_video(truth.frames).shape == (1, 3, 5, 64, 128)
