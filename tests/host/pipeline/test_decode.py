"""Decoding through the nodes, with ComfyUI's VAE around the autoencoder."""

import pytest
import torch
from autoencoders import as_images
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.vae import memory_plan
from swifti2v.swifti2v_core.vae import strips as streaming


def test_images_are_the_undivided_decode(run, host_vae, latent, whole):
    images = run(
        "SwiftI2V_TiledVAEDecode", samples={"samples": latent.repeat(2, 1, 1, 1, 1)}, vae=host_vae
    )[0]
    assert images.shape == (18, 48, 80, 3)
    for clip in images.split(9):
        assert (clip - as_images(whole)).abs().max() <= 1e-5


def test_the_video_is_written_while_later_frames_are_latent(run, host_vae, latent, monkeypatch):
    order = []
    write, strip = (
        video_file.VideoFile.write,
        streaming.StripDecoder._strip,
    )

    def spy_write(self, frame):
        order.append("write")
        write(self, frame)

    def spy_strip(self, *args, **kwargs):
        order.append("decode")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(streaming.StripDecoder, "_strip", spy_strip)
    run("SwiftI2V_DecodeToVideo", samples={"samples": latent}, vae=host_vae, filename_prefix="streamed")
    assert order == ["decode", "write"] + ["decode", *["write"] * 4] * 2


class Failing:
    """A decoder whose strips run out of memory after some calls in each of the first plans."""

    def __init__(self, monkeypatch, failures):
        self.plans, self._calls, self._failures = [], 0, failures
        strip = streaming.StripDecoder._strip

        def run(decoder, *args):
            if decoder._plan not in self.plans:
                self.plans.append(decoder._plan)
                self._calls = 0
            self._calls += 1
            if len(self.plans) <= len(self._failures) and self._calls > self._failures[len(self.plans) - 1]:
                raise torch.OutOfMemoryError("injected")
            return strip(decoder, *args)

        monkeypatch.setattr(streaming.StripDecoder, "_strip", run)

    def bytes_of(self, vae):
        decoder = vae.first_stage_model.decoder
        return [memory_plan.decode_cost(decoder, 3, 5, 4, plan, 3).device_bytes for plan in self.plans]


@pytest.mark.parametrize("failures", [[0], [3], [5], [0, 1, 2], [1, 2], [5, 0, 7]])
def test_out_of_memory_retries_in_less_memory_with_the_same_picture(
    host_vae, latent, whole, monkeypatch, caplog, failures
):
    failing = Failing(monkeypatch, failures)
    monkeypatch.setattr(decoding, "first_plan", lambda *_: streaming.DecodePlan(2))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    taken = failing.bytes_of(host_vae)
    assert len(taken) == len(failures) + 1 and taken == sorted(set(taken), reverse=True)
    assert caplog.text.count("starts again in smaller strips") == 1


def test_progress_is_reported_before_frames_are_finished(host_vae, latent, whole, monkeypatch):
    plan = streaming.DecodePlan(2, groups=2, kept=3)
    monkeypatch.setattr(decoding, "first_plan", lambda *_: plan)
    seen = []
    with torch.inference_mode():
        frames = decoding.decode_integers(host_vae, latent, report=seen.append)
        first = next(frames)
        assert seen == [0, 2, 4, 5] and len(first) == 1
        clip = torch.cat((first, *frames))
    assert seen == [0, 2, 4, 5, 7, 9]
    assert (clip.float() - as_images(whole) * 255).abs().max() <= 0.51


@pytest.mark.parametrize("error", [KeyError("no"), RuntimeError("shape mismatch")])
def test_other_errors_are_no_lack_of_memory(host_vae, latent, monkeypatch, error):
    def failing(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(streaming.StripDecoder, "_strip", failing)
    with torch.inference_mode(), pytest.raises(type(error)):
        decoding.decode_images(host_vae, latent)


def test_out_of_memory_in_the_smallest_strips_is_reported(host_vae, latent, monkeypatch):

    def failing(self, *args, **kwargs):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(streaming.StripDecoder, "_strip", failing)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError, match="even in 8 strips"):
        decoding.decode_images(host_vae, latent)


def test_frames_that_are_not_finite_are_refused(host_vae, latent):
    broken = latent.clone()
    broken[:, :, 1] = float("nan")
    with torch.inference_mode(), pytest.raises(ValueError, match="NaN"):
        list(decoding.decode_integers(host_vae, broken))


def test_bytes_are_the_rounded_images(host_vae, latent, whole):
    with torch.inference_mode():
        frames = torch.cat(list(decoding.decode_integers(host_vae, latent)))
    assert frames.dtype == torch.uint8
    assert (frames.float() - as_images(whole) * 255).abs().max() <= 0.51


def test_the_real_shapes_through_comfyuis_own_vae_object(run, monkeypatch):
    """All widths of the Wan2.2 VAE with random weights, loaded by ComfyUI, in strips and in pieces."""
    import comfy.sd

    with torch.device("meta"):
        shapes = wan22.WanVAE(
            dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True]
        ).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.ones(value.shape)
        if key.endswith("gamma")
        else torch.randn(value.shape, generator=generator) * (0.5 / value[0].numel()) ** 0.5
        for key, value in shapes.items()
    }
    vae = comfy.sd.VAE(sd=state)
    planned = decoding.first_plan
    latent = torch.randn(1, 48, 2, 4, 3, generator=generator)
    with torch.inference_mode():
        expected = vae.decode(latent)[0]
    for plan in (None, streaming.DecodePlan(3, 2, groups=2, kept=1)):
        monkeypatch.setattr(decoding, "first_plan", lambda *a, plan=plan: plan or planned(*a))
        images = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent}, vae=vae)[0]
        assert expected.std() > 0.05 and (images - expected).abs().max() <= 1e-5
    photo, motion = torch.rand(1, 32, 64, 3), torch.rand(5, 32, 64, 3)
    z_ref = run(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, width=64, height=32, frames=5
    )[0]
    with torch.inference_mode():
        whole = vae.encode(torch.cat((photo, motion[1:])))
    assert (z_ref["samples"] - whole).abs().max() <= 1e-5 * whole.abs().max()
