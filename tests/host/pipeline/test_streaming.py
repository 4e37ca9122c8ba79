"""Streaming through the Wan autoencoders against the host's own undivided decode and encode."""

import copy
import gc
import weakref

import comfy.ops
import pytest
import torch
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from comfy.model_patcher import ModelPatcher
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.reference import hybrid
from swifti2v.swifti2v_core.vae import counting, memory_plan
from swifti2v.swifti2v_core.vae import strips as strips_module
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


@pytest.fixture(scope="module", params=["Wan2.2", "Wan2.1"])
def family(request):
    return with_random_weights(narrow_module(request.param))


@pytest.fixture(scope="module")
def autoencoder():
    return with_random_weights(narrow_module("Wan2.2"))


@pytest.fixture(scope="module")
def stream(pack):
    return strips_module


@pytest.fixture(scope="module")
def planning(pack):
    return memory_plan


def random_latent(module, latent_frames, height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, module.z_dim, latent_frames, height, width, generator=generator)


@pytest.fixture(scope="module")
def latent(autoencoder):
    return random_latent(autoencoder, 3, 3, 5)


@pytest.fixture(scope="module")
def whole(autoencoder, latent):
    with torch.inference_mode():
        return autoencoder.decode(latent)


def raw(pixels):
    return pixels


def decoded(stream, module, latent, plan):
    """Return the frames and how many came in each piece."""
    decoder, bands = stream.StripDecoder(module, plan, raw), []
    with torch.inference_mode():
        for band, pixels in zip(decoder.bands(latent), decoder.decode(latent), strict=True):
            bands.append((band, pixels))
    ends = [(band.frames.stop, pixels.shape) for band, pixels in bands]
    height, width = (max(size) for size in zip(*((shape[1], shape[2]) for _, shape in ends), strict=True))
    side = bands[0][0].side
    total = max(band.end for band, _ in bands)
    height, width = (total, width) if side == 1 else (height, total)
    clip = torch.full(
        (max(end for end, _ in ends), height, width, 3), float("nan"), dtype=bands[0][1].dtype
    )
    for band, pixels in bands:
        band.of(clip).copy_(pixels)
    return clip.movedim(-1, 0)[None], [len(pixels) for _, pixels in bands]


def undivided(module, latent):
    with torch.inference_mode():
        return module.decode(latent)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("frames", "groups", "kept"), [(4, 1, 0), (2, 2, 1), (1, 5, 3)])
@pytest.mark.parametrize("strips", [1, 2, 3, 4, 5])
def test_strips_equal_the_undivided_decode(
    stream, autoencoder, latent, whole, strips, frames, groups, kept
):
    groups = min(strips, groups)
    frames, counts = decoded(stream, autoencoder, latent, stream.DecodePlan(strips, frames, groups, kept))
    assert counts == [1, 4, 4] * groups
    assert frames.shape == whole.shape == (1, 3, 9, 48, 80)
    assert relative(frames, whole) <= 2e-6


@pytest.mark.parametrize("size", [(2, 5), (7, 1), (3, 3)])
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_both_families_at_odd_sizes(stream, family, latent_frames, size):
    """One strip per two cells of features: every place where strips can meet is met."""
    latent = random_latent(family, latent_frames, *size)
    plan = stream.DecodePlan(2 * max(size), 2, groups=max(size), kept=1)
    assert relative(decoded(stream, family, latent, plan)[0], undivided(family, latent)) <= 2e-6


def test_a_long_clip_does_not_drift_or_pulse(stream, family):
    latent = random_latent(family, 21, 1, 2)
    expected = undivided(family, latent)
    frames, counts = decoded(stream, family, latent, stream.DecodePlan(3))
    assert counts == [1] + [4] * 20
    difference = (frames - expected).mean(dim=(0, 1, 3, 4)) / expected.abs().max()
    assert difference.abs().max() <= 1e-6


def test_the_halo_is_exactly_what_is_needed(stream, autoencoder, monkeypatch):
    stages = stream.layers.stages(autoencoder.decoder.upsamples)[1:]
    assert stream.tail_halos(stages) == [12, 10, 7]
    # In double precision even the faint influence of the outermost row shows.
    exact = copy.deepcopy(autoencoder).double()
    tall = random_latent(autoencoder, 2, 24, 2).double()
    expected = undivided(exact, tall)
    errors = {}
    for halos in ((12, 10, 7), (12, 10, 6), (12, 9, 6), (6, 5, 3)):
        monkeypatch.setattr(stream, "tail_halos", lambda _, halos=halos: halos)
        errors[halos] = relative(decoded(stream, exact, tall, stream.DecodePlan(2))[0], expected)
    assert errors[12, 10, 7] < 1e-14 < 1e-12 < errors[12, 10, 6] <= errors[12, 9, 6] < errors[6, 5, 3]
    assert errors[6, 5, 3] > 1e-5


def test_sixteen_bits_are_no_worse_than_the_hosts(stream, family):
    latent = random_latent(family, 3, 5, 6)
    exact = undivided(family, latent)
    half = copy.deepcopy(family).bfloat16()
    ours = decoded(stream, half, latent.bfloat16(), stream.DecodePlan(3))[0]
    hosts = undivided(half, latent.bfloat16()).float()
    assert (ours - exact).abs().mean() <= 1.02 * (hosts - exact).abs().mean()
    assert (ours - exact).abs().max() <= 1.2 * (hosts - exact).abs().max()


def test_frames_come_while_later_ones_are_still_latent(stream, autoencoder, latent):
    """What is done does not wait for the end: later latent frames can still change."""
    changing = latent.clone()
    with torch.inference_mode():
        decoding = stream.StripDecoder(autoencoder, stream.DecodePlan(2), raw).decode(changing)
        first = next(decoding)
        changing[:, :, 1:] = 0
        frames = torch.cat([first, *decoding]).movedim(-1, 0)[None]
    assert relative(frames, undivided(autoencoder, changing)) <= 2e-6


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


def test_what_is_held_does_not_grow_with_the_clip(stream, family):
    def peak(latent_frames):
        latent, counts = random_latent(family, latent_frames, 2, 3), []
        with torch.inference_mode(), Held() as held:
            for frames in stream.StripDecoder(family, stream.DecodePlan(2), raw).decode(latent):
                del frames
                counts.append(held.count())
        return max(counts)

    assert peak(6) == peak(3) > 0


@pytest.mark.parametrize("stop", [1, 20, 60, 130])
def test_an_interrupt_frees_everything(stream, family, stop, monkeypatch):
    convolve, calls = stream.layers.convolve, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return convolve(*args)

    latent = random_latent(family, 3, 2, 3)
    monkeypatch.setattr(stream.layers, "convolve", interrupted)
    decoder = stream.StripDecoder(family, stream.DecodePlan(2), raw)
    with torch.inference_mode(), Held() as held:
        with pytest.raises(KeyboardInterrupt):
            list(decoder.decode(latent))
        assert stop == 1 or held.count() > 0  # the decoder's memories
        del decoder
        gc.collect()
        assert held.count() == 0


@pytest.mark.parametrize("size", [(32, 48), (80, 16)])
@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("strips", [1, 2, 3, 16])
def test_encoding_in_pieces_and_strips_equals_the_whole(stream, family, strips, groups, size):
    plan = stream.EncodePlan(strips, min(strips, groups))
    frames = torch.rand(9, *size, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        pieces = [frames[:1], *frames[1:].split(4)]
        latent = torch.cat(list(stream.StripEncoder(family, plan).encode(pieces)), dim=2)
        expected = family.encode(frames.movedim(-1, 0)[None])
    assert latent.shape == expected.shape and latent.shape[2] == 3
    assert relative(latent, expected) <= 2e-6


def test_which_autoencoders_stream(stream, family, vae):
    assert stream.is_wan_autoencoder(family)
    assert not stream.is_wan_autoencoder(vae.first_stage_model)
    assert not stream.is_wan_autoencoder(torch.nn.Linear(1, 1))
    with torch.device("meta"):
        twice = wan21.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True], conv_out_channels=12)
        transparent = wan21.WanVAE(dim=8, z_dim=16, image_channels=4, conv_out_channels=4)
    assert not stream.is_wan_autoencoder(twice) and not stream.is_wan_autoencoder(transparent)


def test_strips_cover_everything_once():
    for length in (1, 5, 176):
        for strips in (1, 2, 7, 300):
            ranges = counting.strip_ranges(length, strips)
            assert [place for begin, end in ranges for place in range(begin, end)] == list(range(length))


@pytest.fixture(scope="module")
def real():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


PLANS_OF_2K = [(strips, frames) for strips in (1, 2, 4, 8, 16, 32) for frames in (1, 4)]


@pytest.fixture
def shapes_alone(stream, monkeypatch):
    """Let convolutions and attention give shapes on the meta device, laid out as on a GPU."""

    def convolve(convolution, x):
        kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
        sizes = [
            (size + 2 * around - side) // step + 1
            for size, around, side, step in zip(x.shape[1:4], padding, kernel, stride, strict=True)
        ]
        return x.new_empty(x.shape[0], *sizes, convolution.out_channels)

    def on_pictures(convolution, x, *_):
        channels_last = x.movedim(1, -1)
        assert channels_last.is_contiguous()
        height, width = x.shape[-2:]
        if convolution.stride[0] == 2:
            height, width = (height - 3) // 2 + 1, (width - 3) // 2 + 1
        return x.new_empty(len(x), height, width, convolution.out_channels).movedim(-1, 1)

    monkeypatch.setattr(stream.layers, "convolve", convolve)
    monkeypatch.setattr(comfy.ops.disable_weight_init.Conv2d, "forward", on_pictures)
    monkeypatch.setattr(wan22.AttentionBlock, "forward", lambda self, x: torch.empty_like(x))
    monkeypatch.setattr(stream.layers.F, "rms_norm", lambda x, *_: torch.empty_like(x))


class Peak(Held):
    """Also knows the most that was held at once."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, *args, **kwargs):
        result = super().__torch_dispatch__(*args, **kwargs)
        self.most = max(self.most, self.count())
        return result


@pytest.mark.parametrize("cut", PLANS_OF_2K)
def test_a_2k_decode_takes_what_was_planned(stream, planning, real, shapes_alone, cut):
    plan = planning.DecodePlan(*cut, groups=max(1, cut[0] // 4))
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        latent = torch.empty(1, 48, 3, 88, 160, dtype=torch.bfloat16)
        decoder = stream.StripDecoder(real, plan, lambda pixels: pixels.float().half())
        for frames in decoder.decode(latent):
            del frames
    planned = planning.decode_cost(real.decoder, 88, 160, 2, plan, 3).device_bytes
    assert 0.7 * planned < peak.most <= planned


@pytest.mark.parametrize("strips", [1, 2, 4, 8, 16])
def test_a_2k_encode_takes_what_was_planned(stream, planning, real, shapes_alone, strips):
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        pieces = (torch.empty(count, 1408, 2560, 3, dtype=torch.bfloat16) for count in (1, 4, 4))
        list(stream.StripEncoder(real, planning.EncodePlan(strips)).encode(pieces))
    planned = planning.encode_cost(real.encoder, 1408, 2560, 2, planning.EncodePlan(strips), 3).device_bytes
    assert 0.7 * planned < peak.most <= planned


def test_plans_by_free_memory(planning, real):
    def plan(gibibytes):
        return planning.plan_decode(real.decoder, 88, 160, 2, gibibytes * 2**30, latent_frames=21)

    assert plan(60) == planning.DecodePlan(1, frames=2)
    assert plan(20) == planning.DecodePlan(2)
    assert plan(16.2) == planning.DecodePlan(4, frames=2)
    assert plan(10) == planning.DecodePlan(3, groups=3, kept=21)
    assert plan(1).strips == plan(1).groups == 64  # try it; out of memory is handled elsewhere
    plans = [planning.plan_encode(real.encoder, 1408, 2560, 2, size * 2**30) for size in (20, 8, 6.2, 1)]
    strips = [plan.strips for plan in plans]
    assert strips == sorted(strips) and strips[0] == 1 and strips[-1] == 16


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_memories_are_counted_exactly(stream, family, size, monkeypatch):
    latent, caches = random_latent(family, 2, *size), []
    strip = stream.StripDecoder._strip
    monkeypatch.setattr(
        stream.StripDecoder, "_strip", lambda self, *args: caches.append(args[-1]) or strip(self, *args)
    )
    with torch.inference_mode():
        list(stream.StripDecoder(family, stream.DecodePlan(1), raw).decode(latent))
    held = sum(part.numel() * 4 for part in caches[-1].values())
    assert counting.DecodeCounter(family.decoder, *size, 4).cache_bytes(strips=1) == held


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
    assert images.shape == (18, 48, 80, 3)
    for clip in images.split(9):
        assert (clip - as_images(whole)).abs().max() <= 1e-5


def test_the_video_is_written_while_later_frames_are_latent(run, host_vae, latent, pack, monkeypatch):
    order = []
    write, tail = (
        video_file.VideoFile.write,
        strips_module.StripDecoder._strip,
    )

    def spy_write(self, frame):
        order.append("write")
        write(self, frame)

    def spy_strip(self, *args, **kwargs):
        order.append("decode")
        return tail(self, *args, **kwargs)

    monkeypatch.setattr(video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(strips_module.StripDecoder, "_strip", spy_strip)
    run("SwiftI2V_DecodeToVideo", samples={"samples": latent}, vae=host_vae, filename_prefix="streamed")
    assert order == ["decode", "write"] + ["decode", *["write"] * 4] * 2


@pytest.mark.parametrize("fails_at", [0, 3, 5])
def test_out_of_memory_goes_on_with_smaller_strips_and_the_same_picture(
    pack, host_vae, latent, whole, monkeypatch, caplog, fails_at
):
    core = strips_module
    strip, calls = core.StripDecoder._strip, []

    def failing(self, *args, **kwargs):
        calls.append(self._plan.strips)
        if len(calls) == fails_at + 1:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    monkeypatch.setattr(decoding.DecodePlanner, "first", lambda _: core.DecodePlan(2))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert set(calls) == {2, 4} and caplog.text.count("starts again in smaller strips") == 1


def test_out_of_memory_at_every_number_of_strips(pack, host_vae, latent, whole, monkeypatch, caplog):
    """Each size fails once, a little later in the clip than the one before."""
    core = strips_module
    strip, calls = core.StripDecoder._strip, {}

    def failing(self, *args, **kwargs):
        strips = self._plan.strips
        calls[strips] = calls.get(strips, 0) + 1
        if strips < 64 and calls[strips] == 1 + strips:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    monkeypatch.setattr(decoding.DecodePlanner, "first", lambda _: core.DecodePlan(1))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert list(calls)[:6] == [1, 2, 4, 8, 16, 32]
    assert caplog.text.count("out of memory") == 1


@pytest.mark.parametrize("error", [KeyError("no"), RuntimeError("shape mismatch")])
def test_other_errors_are_no_lack_of_memory(pack, host_vae, latent, monkeypatch, error):
    def failing(self, *args, **kwargs):
        raise error

    core = strips_module
    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    with torch.inference_mode(), pytest.raises(type(error)):
        decoding.decode_images(host_vae, latent)


def test_out_of_memory_in_the_end_is_said(pack, host_vae, latent, monkeypatch):
    core = strips_module

    def failing(self, *args, **kwargs):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError, match="even in 64 strips"):
        decoding.decode_images(host_vae, latent)


def test_frames_that_are_not_finite_are_said(pack, host_vae, latent):
    broken = latent.clone()
    broken[:, :, 1] = float("nan")
    with torch.inference_mode(), pytest.raises(ValueError, match="NaN"):
        list(decoding.decode_bytes(host_vae, broken))


def test_bytes_are_the_rounded_images(pack, host_vae, latent, whole):
    with torch.inference_mode():
        frames = torch.cat(list(decoding.decode_bytes(host_vae, latent)))
    assert frames.dtype == torch.uint8
    assert (frames.float() - as_images(whole) * 255).abs().max() <= 0.51


def test_the_reference_is_encoded_in_pieces(run, host_vae, autoencoder, photo, pack, monkeypatch):
    motion = torch.rand(13, 32, 48, 3, generator=torch.Generator().manual_seed(4))
    core = hybrid
    settings = core.ReferenceSettings(96, 64, 13)
    clip = torch.cat(list(core.reference_chunks(photo, motion, settings)))
    with torch.inference_mode():
        expected = autoencoder.encode((clip * 2 - 1).movedim(-1, 0)[None])
    options = {"image": photo, "motion": motion, "vae": host_vae, "width": 96, "height": 64, "frames": 13}
    streamed = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
    assert (streamed - expected).abs().max() <= 1e-5 * expected.abs().max()

    encoder = strips_module.StripEncoder
    front, tried, enough = encoder._front, [], 0

    def failing(self, x, *args):
        tried.append(self._plan.strips)
        tried_strips = self._plan.strips
        if tried_strips < enough or (len(x[0]) == 4 and tried_strips < 2 * enough):
            raise torch.OutOfMemoryError("injected")
        return front(self, x, *args)

    monkeypatch.setattr(encoder, "_front", failing)
    for enough, last in ((1, 2), (4, 8), (8, 16)):  # noqa: B007 (read in failing)
        again = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
        assert (again - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert tried[-1] == last


def test_the_real_shapes_through_comfyuis_own_vae_object(pack, run, monkeypatch):
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
    core = strips_module
    planned = decoding.DecodePlanner.first
    latent = torch.randn(1, 48, 2, 4, 3, generator=generator)
    with torch.inference_mode():
        expected = vae.decode(latent)[0]
    for plan in (None, core.DecodePlan(3, 2, groups=2, kept=1)):
        monkeypatch.setattr(decoding.DecodePlanner, "first", lambda self, plan=plan: plan or planned(self))
        images = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent}, vae=vae)[0]
        assert expected.std() > 0.05 and (images - expected).abs().max() <= 1e-5
    photo, motion = torch.rand(1, 32, 64, 3), torch.rand(5, 32, 64, 3)
    z_ref = run(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, width=64, height=32, frames=5
    )[0]
    with torch.inference_mode():
        whole = vae.encode(torch.cat((photo, motion[1:])))
    assert (z_ref["samples"] - whole).abs().max() <= 1e-5 * whole.abs().max()
