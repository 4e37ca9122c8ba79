"""Streaming in strips against ComfyUI's own undivided decode and encode."""

import copy
import gc

import pytest
import torch
from autoencoders import (
    Held,
    decoded,
    random_latent,
    raw,
    relative,
    undivided,
)
from comfy.ldm.wan import vae as wan21
from swifti2v.swifti2v_core.vae import strips as streaming


@pytest.mark.parametrize(("frames", "groups", "kept"), [(4, 1, 0), (2, 2, 1), (1, 5, 3)])
@pytest.mark.parametrize("strips", [1, 2, 3, 4, 5])
def test_strips_equal_the_undivided_decode(autoencoder, latent, whole, strips, frames, groups, kept):
    groups = min(strips, groups)
    frames, counts = decoded(autoencoder, latent, streaming.DecodePlan(strips, frames, groups, kept))
    assert counts == [1, 4, 4] * groups
    assert frames.shape == whole.shape == (1, 3, 9, 48, 80)
    assert relative(frames, whole) <= 2e-6


@pytest.mark.parametrize("size", [(2, 5), (7, 1), (3, 3)])
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_both_families_at_odd_sizes(family, latent_frames, size):
    """One strip per two cells of features: every place where strips can meet is met."""
    latent = random_latent(family, latent_frames, *size)
    plan = streaming.DecodePlan(2 * max(size), 2, groups=max(size), kept=1)
    # Rounding depends on the CPU: 2.2e-6 is the most that has been seen.
    assert relative(decoded(family, latent, plan)[0], undivided(family, latent)) <= 3e-6


def test_a_long_clip_does_not_drift_or_pulse(family):
    latent = random_latent(family, 21, 1, 2)
    expected = undivided(family, latent)
    frames, counts = decoded(family, latent, streaming.DecodePlan(3))
    assert counts == [1] + [4] * 20
    difference = (frames - expected).mean(dim=(0, 1, 3, 4)) / expected.abs().max()
    assert difference.abs().max() <= 1e-6


def test_the_halo_is_exactly_what_is_needed(autoencoder, monkeypatch):
    stages = streaming.layers.stages(autoencoder.decoder.upsamples)[1:]
    assert streaming.tail_halos(stages) == [12, 10, 7]
    # In double precision even the faint influence of the outermost row shows.
    exact = copy.deepcopy(autoencoder).double()
    tall = random_latent(autoencoder, 2, 24, 2).double()
    expected = undivided(exact, tall)
    errors = {}
    for halos in ((12, 10, 7), (12, 10, 6), (12, 9, 6), (6, 5, 3)):
        monkeypatch.setattr(streaming, "tail_halos", lambda _, halos=halos: halos)
        errors[halos] = relative(decoded(exact, tall, streaming.DecodePlan(2))[0], expected)
    assert errors[12, 10, 7] < 1e-14 < 1e-12 < errors[12, 10, 6] <= errors[12, 9, 6] < errors[6, 5, 3]
    assert errors[6, 5, 3] > 1e-5


def test_sixteen_bits_are_no_worse_than_comfyuis_own(family):
    latent = random_latent(family, 3, 5, 6)
    exact = undivided(family, latent)
    half = copy.deepcopy(family).bfloat16()
    ours = decoded(half, latent.bfloat16(), streaming.DecodePlan(3))[0]
    comfyuis = undivided(half, latent.bfloat16()).float()
    assert (ours - exact).abs().mean() <= 1.02 * (comfyuis - exact).abs().mean()
    assert (ours - exact).abs().max() <= 1.2 * (comfyuis - exact).abs().max()


def test_frames_come_while_later_ones_are_still_latent(autoencoder, latent):
    """What is done does not wait for the end: later latent frames can still change."""
    changing = latent.clone()
    with torch.inference_mode():
        decoder = streaming.StripDecoder(autoencoder, streaming.DecodePlan(2), raw)
        decoding = decoder.decode(changing)
        first = next(decoding)
        changing[:, :, 1:] = 0
        frames = torch.cat([first, *decoding]).movedim(-1, 0)[None]
    assert relative(frames, undivided(autoencoder, changing)) <= 2e-6


def test_what_is_held_does_not_grow_with_the_clip(family):
    def peak(latent_frames):
        latent, counts = random_latent(family, latent_frames, 2, 3), []
        decoder = streaming.StripDecoder(family, streaming.DecodePlan(2), raw)
        with torch.inference_mode(), Held() as held:
            for frames in decoder.decode(latent):
                del frames
                counts.append(held.count())
        return max(counts)

    assert peak(6) == peak(3) > 0


@pytest.mark.parametrize("stop", [1, 20, 60, 130])
def test_an_interrupt_frees_everything(family, stop, monkeypatch):
    convolve, calls = streaming.layers.convolve, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return convolve(*args)

    latent = random_latent(family, 3, 2, 3)
    monkeypatch.setattr(streaming.layers, "convolve", interrupted)
    decoder = streaming.StripDecoder(family, streaming.DecodePlan(2), raw)
    with torch.inference_mode(), Held() as held:
        with pytest.raises(KeyboardInterrupt):
            list(decoder.decode(latent))
        gc.collect()
        assert held.count() == 0


@pytest.mark.parametrize("size", [(32, 48), (80, 16)])
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("strips", [1, 2, 3, 16])
def test_encoding_in_pieces_and_strips_equals_the_whole(family, strips, groups, size):
    plan = streaming.EncodePlan(strips, min(strips, groups))
    frames = torch.rand(9, *size, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        pieces = [frames[:1], *frames[1:].split(4)]
        latent = torch.cat(list(streaming.StripEncoder(family, plan).encode(pieces)), dim=2)
        expected = family.encode(frames.movedim(-1, 0)[None])
    assert latent.shape == expected.shape and latent.shape[2] == 3
    assert relative(latent, expected) <= 2e-6


def test_which_autoencoders_stream(family, vae):
    assert streaming.is_wan_autoencoder(family)
    assert not streaming.is_wan_autoencoder(vae.first_stage_model)
    assert not streaming.is_wan_autoencoder(torch.nn.Linear(1, 1))
    with torch.device("meta"):
        twice = wan21.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True], conv_out_channels=12)
        transparent = wan21.WanVAE(dim=8, z_dim=16, image_channels=4, conv_out_channels=4)
    assert not streaming.is_wan_autoencoder(twice) and not streaming.is_wan_autoencoder(transparent)
