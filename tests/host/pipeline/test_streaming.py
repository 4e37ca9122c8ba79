"""Streaming through the Wan autoencoders against the host's own undivided decode and encode."""

import copy
import dataclasses
import gc
import weakref

import comfy.ops
import pytest
import torch
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from comfy.model_patcher import ModelPatcher
from swifti2v.nodes.comfyui import memory
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.reference import hybrid
from swifti2v.swifti2v_core.vae import memory_plan
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


def unpinned(tensor):
    """Do nothing, as ComfyUI does where nothing can be pinned."""


def decoded(stream, module, latent, plan):
    with torch.inference_mode():
        parts = list(stream.StripDecoder(module, plan, raw, unpinned).decode(latent))
    return torch.cat(parts).movedim(-1, 0)[None], [len(part) for part in parts]


def undivided(module, latent):
    with torch.inference_mode():
        return module.decode(latent)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("latent_frames", "offload"), [(1, False), (2, True), (3, True)])
@pytest.mark.parametrize("strips", [1, 2, 3, 4, 5])
def test_strips_equal_the_undivided_decode(
    stream, autoencoder, latent, whole, strips, latent_frames, offload
):
    frames, counts = decoded(stream, autoencoder, latent, stream.DecodePlan(strips, latent_frames, offload))
    assert counts == {1: [1, 4, 4], 2: [5, 4], 3: [9]}[latent_frames]
    assert frames.shape == whole.shape == (1, 3, 9, 48, 80)
    assert relative(frames, whole) <= 2e-6


@pytest.mark.parametrize("size", [(2, 5), (7, 1), (3, 3)])
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_both_families_at_odd_sizes(stream, family, latent_frames, size):
    """One strip per two cells of features: every place where strips can meet is met."""
    latent = random_latent(family, latent_frames, *size)
    plan = stream.DecodePlan(2 * max(size), 2, offload=True)
    assert relative(decoded(stream, family, latent, plan)[0], undivided(family, latent)) <= 2e-6


def test_a_long_clip_does_not_drift_or_pulse(stream, family):
    latent = random_latent(family, 21, 1, 2)
    expected = undivided(family, latent)
    frames, counts = decoded(stream, family, latent, stream.DecodePlan(3, 1))
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
        errors[halos] = relative(decoded(stream, exact, tall, stream.DecodePlan(2, 1))[0], expected)
    assert errors[12, 10, 7] < 1e-14 < 1e-12 < errors[12, 10, 6] <= errors[12, 9, 6] < errors[6, 5, 3]
    assert errors[6, 5, 3] > 1e-5


def test_sixteen_bits_are_no_worse_than_the_hosts(stream, family):
    latent = random_latent(family, 3, 5, 6)
    exact = undivided(family, latent)
    half = copy.deepcopy(family).bfloat16()
    ours = decoded(stream, half, latent.bfloat16(), stream.DecodePlan(3, 1))[0]
    hosts = undivided(half, latent.bfloat16()).float()
    assert (ours - exact).abs().mean() <= 1.02 * (hosts - exact).abs().mean()
    assert (ours - exact).abs().max() <= 1.2 * (hosts - exact).abs().max()


def test_frames_come_while_later_ones_are_still_latent(stream, autoencoder, latent):
    """What is done does not wait for the end: later latent frames can still change."""
    changing = latent.clone()
    with torch.inference_mode():
        decoding = stream.StripDecoder(autoencoder, stream.DecodePlan(2, 1), raw, unpinned).decode(changing)
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
            for frames in stream.StripDecoder(family, stream.DecodePlan(2, 1), raw, unpinned).decode(
                latent
            ):
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
    decoder = stream.StripDecoder(family, stream.DecodePlan(2, 1), raw, unpinned)
    with torch.inference_mode(), Held() as held:
        with pytest.raises(KeyboardInterrupt):
            list(decoder.decode(latent))
        assert stop == 1 or held.count() > 0  # the decoder's memories
        del decoder
        gc.collect()
        assert held.count() == 0


@pytest.mark.parametrize("size", [(32, 48), (80, 16)])
@pytest.mark.parametrize("strips", [1, 2, 3, 16])
def test_encoding_in_pieces_and_strips_equals_the_whole(stream, family, strips, size):
    frames = torch.rand(9, *size, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.inference_mode():
        pieces = [frames[:1], *frames[1:].split(4)]
        latent = torch.cat(list(stream.StripEncoder(family, strips).encode(pieces)), dim=2)
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


def test_strips_cover_everything_once(planning):
    for length in (1, 5, 176):
        for strips in (1, 2, 7, 300):
            ranges = planning.strip_ranges(length, strips)
            assert [place for begin, end in ranges for place in range(begin, end)] == list(range(length))


@pytest.fixture(scope="module")
def real():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


PLANS_OF_2K = [(strips, 1, False) for strips in (1, 2, 4)] + [(strips, 6, True) for strips in (8, 16, 32)]


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


class Elsewhere:
    """A cache in memory that is not counted."""

    def __init__(self, pin):
        self._kept = {}

    def store(self, tensors):
        self._kept = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    def fetch(self, device):
        return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in self._kept.items()}


@pytest.mark.parametrize("cut", PLANS_OF_2K)
def test_a_2k_decode_takes_what_was_planned(stream, planning, real, shapes_alone, cut, monkeypatch):
    plan = planning.DecodePlan(*cut)
    monkeypatch.setattr(stream, "PinnedCache", Elsewhere)
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        latent = torch.empty(1, 48, 2 + plan.latent_frames, 88, 160, dtype=torch.bfloat16)
        decoder = stream.StripDecoder(real, plan, lambda pixels: pixels.float().half(), unpinned)
        for frames in decoder.decode(latent):
            del frames
    planned = planning.decode_memory_bytes(real.decoder, 88, 160, 2, plan)
    assert 0.7 * planned < peak.most <= planned


@pytest.mark.parametrize("strips", [1, 2, 4, 8, 16])
def test_a_2k_encode_takes_what_was_planned(stream, planning, real, shapes_alone, strips):
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        pieces = (torch.empty(count, 1408, 2560, 3, dtype=torch.bfloat16) for count in (1, 4, 4))
        list(stream.StripEncoder(real, strips).encode(pieces))
    planned = planning.encode_memory_bytes(real.encoder, 1408, 2560, 2, strips)
    assert 0.7 * planned < peak.most <= planned


def test_plans_by_free_memory(planning, real):
    def plan(gibibytes):
        return planning.plan_decode(real.decoder, 88, 160, 2, gibibytes * 2**30)

    assert plan(60) == planning.DecodePlan(1, 1)
    assert plan(20) == planning.DecodePlan(2, 1)
    assert plan(17.5) == planning.DecodePlan(4, 1)
    assert plan(10) == planning.DecodePlan(8, 6, offload=True)
    assert plan(1) == planning.DecodePlan(64, 1, offload=True)  # try it; out of memory is handled elsewhere
    strips = [planning.plan_encode(real.encoder, 1408, 2560, 2, size * 2**30) for size in (20, 8, 6, 1)]
    assert strips == sorted(strips) and strips[0] == 1 and strips[-1] == 16


def test_smaller_plans_are_all_tried(planning):
    plan, plans = planning.DecodePlan(1, 1), []
    while plan:
        plans.append(plan)
        plan = planning.smaller_plan(plan)
    assert tuple(plans) == planning.DECODE_PLANS


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_memories_are_counted_exactly(stream, planning, family, size, monkeypatch):
    latent = random_latent(family, 2, *size)
    decoder = stream.StripDecoder(family, planning.DecodePlan(1, 1), raw, unpinned)
    with torch.inference_mode():
        list(decoder.decode(latent))
    held = sum(part.numel() * 4 for part in decoder._strip_caches[0].values())
    monkeypatch.setattr(planning, "DECODE_COPIES", 0)
    nothing_whole = dataclasses.replace(planning.DecodePlan(1, 1), latent_frames=0)
    assert planning.decode_memory_bytes(family.decoder, *size, 4, nothing_whole) == held


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
        strips_module.StripDecoder._tail,
    )

    def spy_write(self, frame):
        order.append("write")
        write(self, frame)

    def spy_tail(self, *args, **kwargs):
        order.append("decode")
        return tail(self, *args, **kwargs)

    monkeypatch.setattr(video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(strips_module.StripDecoder, "_tail", spy_tail)
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
    monkeypatch.setattr(decoding, "_decode_plan", lambda vae, latent: core.DecodePlan(2, 1))
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
    monkeypatch.setattr(decoding, "_decode_plan", lambda vae, latent: core.DecodePlan(1, 1))
    with torch.inference_mode(), caplog.at_level("WARNING", logger="SwiftI2V"):
        frames = decoding.decode_images(host_vae, latent)
    assert (frames - as_images(whole)).abs().max() <= 1e-5
    assert list(calls)[:6] == [1, 2, 4, 8, 16, 32]
    assert caplog.text.count("out of memory") == 1


def test_what_is_pinned_is_unpinned_also_after_an_error(pack, host_vae, latent, monkeypatch):
    import comfy.model_management as management

    pinned, order = {}, []
    monkeypatch.setattr(management, "pin_memory", lambda tensor: pinned.setdefault(id(tensor), True))
    monkeypatch.setattr(management, "unpin_memory", lambda t: order.append("unpin") or pinned.pop(id(t)))
    monkeypatch.setattr(memory, "synchronize", lambda device: order.append("wait"))
    plan = memory_plan.DecodePlan(2, 2, offload=True)
    monkeypatch.setattr(decoding, "_decode_plan", lambda *_: plan)
    with torch.inference_mode():
        frames = decoding.decode_bytes(host_vae, latent)
        next(frames)
        assert len(pinned) > 10
        frames.close()
    assert not pinned and order[0] == "wait" and set(order[1:]) == {"unpin"}


def test_what_a_failed_attempt_pinned_is_unpinned_before_the_next(pack, host_vae, latent, monkeypatch):
    import comfy.model_management as management

    core, pinned, attempts, strips = strips_module, set(), [], []
    monkeypatch.setattr(management, "pin_memory", lambda tensor: pinned.add(id(tensor)) or True)
    monkeypatch.setattr(management, "unpin_memory", lambda tensor: pinned.discard(id(tensor)))
    monkeypatch.setattr(memory, "synchronize", lambda device: None)
    plan = memory_plan.DecodePlan(8, 2, offload=True)
    monkeypatch.setattr(decoding, "_decode_plan", lambda *_: plan)
    start, strip = core.StripDecoder.__init__, core.StripDecoder._strip

    def starting(self, *args):
        attempts.append(len(pinned))
        start(self, *args)

    def failing(self, *args):
        strips.append(len(pinned))
        if strips[-1] > 10 and len(attempts) < 3:
            raise torch.OutOfMemoryError("injected")
        return strip(self, *args)

    monkeypatch.setattr(core.StripDecoder, "__init__", starting)
    monkeypatch.setattr(core.StripDecoder, "_strip", failing)
    with torch.inference_mode():
        decoding.decode_images(host_vae, latent)
    assert attempts == [0, 0, 0] and max(strips) > 10


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

    def failing(self, x):
        tried.append(self._strips)
        if self._strips < enough or (len(x[0]) == 4 and self._strips < 2 * enough):
            raise torch.OutOfMemoryError("injected")
        return front(self, x)

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
    planned = decoding._decode_plan
    latent = torch.randn(1, 48, 2, 4, 3, generator=generator)
    with torch.inference_mode():
        expected = vae.decode(latent)[0]
    for plan in (None, core.DecodePlan(3, 2, offload=True)):
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
