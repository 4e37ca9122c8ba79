"""Decoding through the nodes, with ComfyUI's VAE around the autoencoder."""

import pytest
import torch
from autoencoders import as_images
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.nodes.comfyui import memory
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
    write, tail = (
        video_file.VideoFile.write,
        streaming.StripDecoder._tail,
    )

    def spy_write(self, frame):
        order.append("write")
        write(self, frame)

    def spy_tail(self, *args, **kwargs):
        order.append("decode")
        return tail(self, *args, **kwargs)

    monkeypatch.setattr(video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(streaming.StripDecoder, "_tail", spy_tail)
    run("SwiftI2V_DecodeToVideo", samples={"samples": latent}, vae=host_vae, filename_prefix="streamed")
    assert order == ["decode", "write"] + ["decode", *["write"] * 4] * 2


@pytest.mark.parametrize("fails_at", [0, 3, 5])
def test_out_of_memory_retries_in_smaller_strips_with_the_same_picture(
    pack, host_vae, latent, whole, monkeypatch, caplog, fails_at
):
    strip, calls = streaming.StripDecoder._strip, []

    def failing(self, *args, **kwargs):
        calls.append(self._plan.strips)
        if len(calls) == fails_at + 1:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(streaming.StripDecoder, "_strip", failing)
    monkeypatch.setattr(decoding, "_decode_plan", lambda vae, latent: streaming.DecodePlan(2, 1))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert set(calls) == {2, 4} and caplog.text.count("starts again in smaller strips") == 1


def test_out_of_memory_at_every_number_of_strips(host_vae, latent, whole, monkeypatch, caplog):
    """Each size fails once, a little later in the clip than the one before."""
    strip, calls = streaming.StripDecoder._strip, {}

    def failing(self, *args, **kwargs):
        strips = self._plan.strips
        calls[strips] = calls.get(strips, 0) + 1
        if strips < 64 and calls[strips] == 1 + strips:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(streaming.StripDecoder, "_strip", failing)
    monkeypatch.setattr(decoding, "_decode_plan", lambda vae, latent: streaming.DecodePlan(1, 1))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert list(calls)[:6] == [1, 2, 4, 8, 16, 32]
    assert caplog.text.count("out of memory") == 1


def test_what_is_pinned_is_unpinned_also_after_an_error(host_vae, latent, monkeypatch):
    import comfy.model_management as management

    pinned, order = {}, []
    monkeypatch.setattr(management, "pin_memory", lambda tensor: pinned.setdefault(id(tensor), True))
    monkeypatch.setattr(management, "unpin_memory", lambda t: order.append("unpin") or pinned.pop(id(t)))
    monkeypatch.setattr(memory, "synchronize", lambda device: order.append("wait"))
    plan = memory_plan.DecodePlan(2, 2, offload=True)
    monkeypatch.setattr(decoding, "_decode_plan", lambda *_: plan)
    with torch.inference_mode():
        frames = decoding.decode_integers(host_vae, latent)
        next(frames)
        assert len(pinned) > 10
        frames.close()
    assert not pinned and order[0] == "wait" and set(order[1:]) == {"unpin"}


def test_what_a_failed_attempt_pinned_is_unpinned_before_the_next(host_vae, latent, monkeypatch):
    import comfy.model_management as management

    pinned, attempts, strips = set(), [], []
    monkeypatch.setattr(management, "pin_memory", lambda tensor: pinned.add(id(tensor)) or True)
    monkeypatch.setattr(management, "unpin_memory", lambda tensor: pinned.discard(id(tensor)))
    monkeypatch.setattr(memory, "synchronize", lambda device: None)
    plan = memory_plan.DecodePlan(8, 2, offload=True)
    monkeypatch.setattr(decoding, "_decode_plan", lambda *_: plan)
    start, strip = streaming.StripDecoder.__init__, streaming.StripDecoder._strip

    def starting(self, *args):
        attempts.append(len(pinned))
        start(self, *args)

    def failing(self, *args):
        strips.append(len(pinned))
        if strips[-1] > 10 and len(attempts) < 3:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args)

    monkeypatch.setattr(streaming.StripDecoder, "__init__", starting)
    monkeypatch.setattr(streaming.StripDecoder, "_strip", failing)
    with torch.inference_mode():
        decoding.decode_images(host_vae, latent)
    assert attempts == [0, 0, 0] and max(strips) > 10


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
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError, match="even in 64 strips"):
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
    planned = decoding._decode_plan
    latent = torch.randn(1, 48, 2, 4, 3, generator=generator)
    with torch.inference_mode():
        expected = vae.decode(latent)[0]
    for plan in (None, streaming.DecodePlan(3, 2, offload=True)):
        monkeypatch.setattr(decoding, "_decode_plan", lambda *a, plan=plan: plan or planned(*a))
        images = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent}, vae=vae)[0]
        assert expected.std() > 0.05 and (images - expected).abs().max() <= 1e-5
    photo, motion = torch.rand(1, 32, 64, 3), torch.rand(5, 32, 64, 3)
    z_ref = run(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, width=64, height=32, frames=5
    )[0]
    with torch.inference_mode():
        whole = vae.encode(torch.cat((photo, motion[1:])))
    assert (z_ref["samples"] - whole).abs().max() <= 1e-5 * whole.abs().max()
