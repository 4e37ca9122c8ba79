"""Streaming through the Wan2.2 autoencoder against the host's own undivided decode and encode."""

import copy

import pytest
import torch
from comfy.ldm.wan.vae2_2 import WanVAE
from comfy.model_patcher import ModelPatcher


@pytest.fixture(scope="module")
def autoencoder():
    """The host's module with random weights, narrow but with all its stages."""
    module = WanVAE(
        dim=8,
        dec_dim=8,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
    )
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.ones(value.shape)
        if key.endswith("gamma")
        else torch.randn(value.shape, generator=generator) * 0.2
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.train(False)


@pytest.fixture(scope="module")
def stream(pack):
    return pack.modules["swifti2v_core.vae_stream"]


@pytest.fixture(scope="module")
def latent():
    return torch.randn(1, 48, 5, 9, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(autoencoder, latent):
    with torch.inference_mode():
        return autoencoder.decode(latent)


@pytest.mark.parametrize("rest", [None, torch.device("cpu")])
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("strips", [1, 2, 3, 5, 18])
def test_strips_equal_the_undivided_decode(stream, autoencoder, latent, whole, strips, chunk, rest):
    with torch.inference_mode():
        parts = list(
            stream.StripDecoder(autoencoder, stream.DecodePlan(strips, chunk, rest)).decode(latent)
        )
    frames = torch.cat(parts, dim=2)
    assert [part.shape[2] for part in parts][:2] == (
        [1, 4] if chunk == 1 else [1 + 4 * (chunk - 1), 8][: len(parts)]
    )
    assert frames.shape == whole.shape == (1, 3, 17, 144, 96)
    assert (frames - whole).abs().max() <= 1e-6 * whole.abs().max()


def test_the_halo_is_exactly_what_is_needed(stream, autoencoder, monkeypatch):
    stages = list(autoencoder.decoder.upsamples)[1:]
    assert stream.tail_halos(stages) == [12, 10, 7]
    # In double precision even the faint influence of the outermost row shows.
    exact = copy.deepcopy(autoencoder).double()
    tall = torch.randn(1, 48, 2, 24, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    errors = {}
    for halos in ((12, 10, 7), (12, 10, 6), (12, 9, 6), (6, 5, 3)):
        monkeypatch.setattr(stream, "tail_halos", lambda _, halos=halos: halos)
        with torch.inference_mode():
            frames = torch.cat(list(stream.StripDecoder(exact, stream.DecodePlan(2, 1)).decode(tall)), 2)
            expected = exact.decode(tall)
        errors[halos] = float((frames - expected).abs().max() / expected.abs().max())
    assert errors[12, 10, 7] < 1e-7  # frames are handed out in float32
    assert errors[12, 10, 7] < errors[12, 10, 6] <= errors[12, 9, 6] < errors[6, 5, 3]
    assert errors[6, 5, 3] > 1e-5


def test_one_latent_frame_is_one_picture(stream, autoencoder, latent):
    with torch.inference_mode():
        frames = list(stream.StripDecoder(autoencoder, stream.DecodePlan(3, 4)).decode(latent[:, :, :1]))
        expected = autoencoder.decode(latent[:, :, :1])
    assert len(frames) == 1 and (frames[0] - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_frames_come_while_later_ones_are_still_latent(stream, autoencoder, latent):
    """What is done does not wait for the end: later latent frames can still change."""
    changing = latent.clone()
    with torch.inference_mode():
        decoding = stream.StripDecoder(autoencoder, stream.DecodePlan(2, 1)).decode(changing)
        first = next(decoding)
        changing[:, :, 1:] = 0
        rest = torch.cat(list(decoding), dim=2)
        expected = autoencoder.decode(changing)
    assert (torch.cat((first, rest), 2) - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_encoding_in_pieces_equals_the_whole(stream, autoencoder):
    frames = torch.rand(1, 3, 13, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        pieces = [frames[:, :, :1], *frames[:, :, 1:].split(4, dim=2)]
        latent = torch.cat(list(stream.stream_encode(autoencoder, pieces)), dim=2)
        expected = autoencoder.encode(frames)
    assert latent.shape == expected.shape == (1, 48, 4, 4, 6)
    assert (latent - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_which_autoencoders_stream(stream, autoencoder, vae):
    assert stream.streams(autoencoder)
    assert not stream.streams(vae.first_stage_model)


def test_strips_cover_all_rows_once(stream):
    for height in (1, 5, 176):
        for strips in (1, 2, 7, 300):
            rows = [row for top, bottom in stream.strip_rows(height, strips) for row in range(top, bottom)]
            assert rows == list(range(height))


@pytest.fixture(scope="module")
def real_decoder():
    """The shapes of the real decoder, without weights."""
    with torch.device("meta"):
        return WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True]).decoder


def test_what_2k_needs(stream, real_decoder):
    caches, row, feature = stream.decode_bytes(real_decoder, 88, 160, 2)
    assert 11.3 < caches / 2**30 < 11.5
    assert 15.0 < 176 * row / 2**30 < 20.0
    assert feature == 1024 * 2 * 176 * 320 * 2


def test_plans_by_free_memory(stream, real_decoder):
    def plan(gibibytes):
        return stream.plan_decode(real_decoder, 88, 160, 2, gibibytes * 2**30)

    cpu = torch.device("cpu")
    assert plan(60) == stream.DecodePlan(1, 1)
    assert plan(20) == stream.DecodePlan(4, 1)
    assert plan(10) == stream.DecodePlan(8, 6, cpu)
    assert plan(1) == stream.DecodePlan(32, 1, cpu)  # try it; out of memory is handled elsewhere
    sizes = [plan(size).strips * (1 if plan(size).rest is None else 100) for size in (60, 40, 20, 10, 5)]
    assert sizes == sorted(sizes)


def test_caches_are_counted_exactly(stream, autoencoder, latent):
    decoder = stream.StripDecoder(autoencoder, stream.DecodePlan(1, 1))
    with torch.inference_mode():
        list(decoder.decode(latent))
    held = sum(
        part.numel() * part.element_size() for part in decoder._caches[0] if isinstance(part, torch.Tensor)
    )
    assert stream.decode_bytes(autoencoder.decoder, 9, 6, 4)[0] == held


# --- Through the nodes, with ComfyUI's VAE around the module ----------------------------------------


@pytest.fixture
def host_vae(autoencoder, vae):
    """A copy of the tiny VAE object with the streaming module in it, values as the Wan2.2 VAE has them."""
    wrapped = copy.copy(vae)
    wrapped.first_stage_model = autoencoder
    wrapped.patcher = ModelPatcher(autoencoder, vae.patcher.load_device, vae.patcher.offload_device)
    wrapped.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
    wrapped.process_input = lambda image: image * 2.0 - 1.0
    return wrapped


def as_images(whole):
    return ((whole + 1) / 2).clamp(0, 1)[0].permute(1, 2, 3, 0)


def test_images_are_the_undivided_decode(run, host_vae, latent, whole):
    images = run(
        "SwiftI2V_TiledVAEDecode", samples={"samples": latent.repeat(2, 1, 1, 1, 1)}, vae=host_vae
    )[0]
    assert images.shape == (34, 144, 96, 3)
    for clip in images.split(17):
        assert (clip - as_images(whole)).abs().max() <= 1e-5


def test_the_video_is_written_while_later_frames_are_latent(run, host_vae, latent, pack, monkeypatch):
    order = []
    write, tail = (
        pack.video_file.VideoFile.write,
        pack.modules["swifti2v_core.vae_stream"].StripDecoder._tail,
    )

    def spy_write(self, frame):
        order.append("write")
        write(self, frame)

    def spy_tail(self, *args, **kwargs):
        order.append("decode")
        return tail(self, *args, **kwargs)

    monkeypatch.setattr(pack.video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(pack.modules["swifti2v_core.vae_stream"].StripDecoder, "_tail", spy_tail)
    run("SwiftI2V_DecodeToVideo", samples={"samples": latent}, vae=host_vae, filename_prefix="streamed")
    assert order == ["decode", "write"] + ["decode", *["write"] * 4] * 4


@pytest.mark.parametrize("fails_at", [0, 3, 7])
def test_out_of_memory_goes_on_with_smaller_strips_and_the_same_picture(
    pack, host_vae, latent, whole, monkeypatch, caplog, fails_at
):
    core = pack.modules["swifti2v_core.vae_stream"]
    strip, calls = core.StripDecoder._strip, []

    def failing(self, *args, **kwargs):
        calls.append(self._plan.strips)
        if len(calls) == fails_at + 1:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    monkeypatch.setattr(pack.autoencoder, "_decode_plan", lambda vae, latent: core.DecodePlan(2, 1))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = torch.cat(list(pack.autoencoder.decode(host_vae, latent)))
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert set(calls) == {2, 8} and "trying again with 8 strips" in caplog.text


def test_out_of_memory_in_the_end_is_said(pack, host_vae, latent, monkeypatch):
    core = pack.modules["swifti2v_core.vae_stream"]

    def failing(self, *args, **kwargs):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    with torch.inference_mode(), pytest.raises(MemoryError, match="even in 64 strips"):
        list(pack.autoencoder.decode(host_vae, latent))


def test_the_reference_is_encoded_in_pieces(run, host_vae, autoencoder, photo, pack, monkeypatch):
    motion = torch.rand(13, 32, 48, 3, generator=torch.Generator().manual_seed(4))
    core = pack.modules["swifti2v_core.reference"]
    settings = core.ReferenceSettings(96, 64, 13)
    clip = torch.cat(list(core.reference_chunks(photo, motion, settings)))
    with torch.inference_mode():
        expected = autoencoder.encode((clip * 2 - 1).movedim(-1, 0)[None])
    options = {"image": photo, "motion": motion, "vae": host_vae, "width": 96, "height": 64, "frames": 13}
    streamed = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
    assert (streamed - expected).abs().max() <= 1e-5 * expected.abs().max()

    def failing(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(pack.modules["swifti2v_core.vae_stream"], "stream_encode", failing)
    whole = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
    assert (whole - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_real_shapes_through_comfyuis_own_vae_object(pack, run, monkeypatch):
    """All widths of the Wan2.2 VAE with random weights, loaded by ComfyUI, in strips and in pieces."""
    import comfy.sd

    with torch.device("meta"):
        shapes = WanVAE(
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
    core = pack.modules["swifti2v_core.vae_stream"]
    planned, cpu = pack.autoencoder._decode_plan, torch.device("cpu")
    latent = torch.randn(1, 48, 2, 4, 3, generator=generator)
    with torch.inference_mode():
        expected = vae.decode(latent)[0]
    for plan in (None, core.DecodePlan(2, 1), core.DecodePlan(3, 2, cpu)):
        monkeypatch.setattr(pack.autoencoder, "_decode_plan", lambda *a, plan=plan: plan or planned(*a))
        images = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent}, vae=vae)[0]
        assert expected.std() > 0.05 and (images - expected).abs().max() <= 1e-5
    photo, motion = torch.rand(1, 32, 64, 3), torch.rand(5, 32, 64, 3)
    z_ref = run(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, width=64, height=32, frames=5
    )[0]
    with torch.inference_mode():
        whole = vae.encode(torch.cat((photo, motion[1:])))
    assert (z_ref["samples"] - whole).abs().max() <= 1e-5 * whole.abs().max()
