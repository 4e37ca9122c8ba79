"""The motion sampler at 640x352 on a fake GPU, with its autoencoder."""

from unittest import mock

import pytest
import torch
from expectations import expect_stored, expect_undisturbed_loops, listed
from host_models import run, text, wan_model, wan_vae

GIB = 2**30
MODELS = {"A14B": (36, 16), "TI2V-5B": (48, 48)}
"""Input channels of the network, channels of the VAE."""


def make_motion(meter, kind, photo=None, *, experts=1, blocks=1, **inputs):
    """Run the motion sampler; the meter counts from here."""
    channels, vae_channels = MODELS[kind]
    models = [wan_model(kind, channels, blocks) for _ in range(experts)]
    vae = wan_vae(vae_channels)
    meter.start()
    return run(
        "SwiftI2V_MotionSampler",
        model_high_noise=models[0],
        model_low_noise=models[1] if experts == 2 else None,
        vae=vae,
        image=torch.zeros(1, 2160, 3840, 3) if photo is None else photo,
        positive=text(),
        negative=text(),
        **inputs,
    )


def expect_motion(meter, frames, latent, count, samplings, channels=16, clips=1, device="cpu"):
    """Hold a run to its shapes, one copy back for every sampling and one for every decoded piece."""
    expect_stored(frames, (clips * count, 352, 640, 3))
    cells = 352 // (8 if channels == 16 else 16), 640 // (8 if channels == 16 else 16)
    times = (count + 3) // 4
    expect_stored(latent["samples"], (clips, channels, times, *cells), device)
    expect_undisturbed_loops(meter)
    places = {}
    for copy in meter.copied("cuda->cpu"):
        places.setdefault((copy.blocking, copy.place), []).append(copy)
    blocking = [len(copies) for (waits, _), copies in places.items() if waits]
    queued = [len(copies) for (waits, _), copies in places.items() if not waits]
    expected = [samplings] if device == "cpu" else []
    assert (blocking, queued) == (expected, [clips * times]), listed(meter.copied("cuda->cpu"))


def test_two_experts_make_a_clip_with_one_copy_for_each(meter):
    frames, latent = make_motion(meter, "A14B", experts=2)
    expect_motion(meter, frames, latent, 81, samplings=2)
    assert meter.peak / GIB == pytest.approx(1.8, rel=0.05)


def test_a_long_clip_is_one_sampling_and_one_copy(meter):
    """Its decode is left out, which is the same for every frame."""
    with mock.patch("swifti2v.nodes.motion_sampler.decode_images", lambda *_: None):
        _, latent = make_motion(meter, "TI2V-5B", frames=241)
    expect_stored(latent["samples"], (1, 48, 61, 22, 40))
    expect_undisturbed_loops(meter)
    assert len(meter.copied("cuda->cpu")) == 1
    assert meter.peak / GIB == pytest.approx(1.15, rel=0.05)


def test_one_model_with_48_channels_makes_a_clip(meter):
    frames, latent = make_motion(meter, "TI2V-5B", frames=9)
    expect_motion(meter, frames, latent, 9, samplings=1, channels=48)


def test_the_first_steps_can_run_at_a_larger_size(meter):
    frames, latent = make_motion(meter, "A14B", experts=2, frames=9, reshift_steps=1)
    expect_motion(meter, frames, latent, 9, samplings=3)


def test_chunks_and_batches_sample_one_clip_at_a_time(meter):
    photos = torch.zeros(2, 1080, 1920, 3)
    frames, latent = make_motion(meter, "A14B", photos, experts=2, frames=21, chunk_frames=13)
    expect_motion(meter, frames, latent, 21, samplings=8, clips=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_photo_and_results_on_the_gpu_stay_there(gpu_only, dtype):
    photo = torch.zeros(1, 1080, 1920, 3, device="cuda", dtype=dtype)
    frames, latent = make_motion(gpu_only, "A14B", photo, experts=2, frames=9)
    expect_motion(gpu_only, frames, latent, 9, samplings=2, device="cuda")
