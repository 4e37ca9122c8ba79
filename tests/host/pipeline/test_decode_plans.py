"""What a 2560x1408 decode and encode take, counted on fake CUDA tensors, and the plans that are chosen.

Tensors of PyTorch's fake mode have a device and a size but no values, so whole clips of the real size run
here. Storages that are alive are counted by device.
"""

import contextlib
import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.nodes.comfyui import memory
from swifti2v.nodes.comfyui import vae as host_vae
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.swifti2v_core.vae import counting, memory_plan, strips, transfer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
HEIGHT, WIDTH = 1408, 2560
CONVOLUTIONS = {
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
    torch.ops.aten.convolution.default,
}


class Meter(TorchDispatchMode):
    """Counts the bytes that are alive on each kind of device, and their peaks."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._known = {"cuda": 0, "cpu": 0}, {"cuda": 0, "cpu": 0}, {}

    def reset(self):
        self.peak = dict(self.alive)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in CONVOLUTIONS:  # cuDNN returns the layout that it got; the fake kernel does not
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}[result.dim()]
            if args[0].is_contiguous(memory_format=layout):
                result = result.contiguous(memory_format=layout)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor):
        kind, storage = tensor.device.type, tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if kind not in self.alive or key in self._known:
            return

        def freed(_):
            self.alive[kind] -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.alive[kind] += size
        self.peak[kind] = max(self.peak[kind], self.alive[kind])


@contextlib.contextmanager
def on_fake_cuda():
    torch._C._ensureCUDADeviceGuardSet()
    with torch.inference_mode(), FakeTensorMode(), Meter() as meter:
        yield meter


def real_autoencoder():
    """Return the Wan2.2 VAE in its real size, on the fake device."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            network = wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])
    finally:
        torch.set_default_dtype(torch.float32)
    for part in (network.encoder, network.decoder):
        part.middle[1].optimized_attention = pytorch_attention
    return network.eval()


@pytest.fixture(scope="module")
def shapes():
    """The real Wan2.2 VAE's shapes."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


@pytest.fixture
def pinned(monkeypatch):
    """Let copies to pinned memory run without a GPU, and count what is pinned at once."""
    count = SimpleNamespace(alive=0, peak=0)

    def to_cpu(tensor):
        copy = tensor.to("cpu")
        size = copy.untyped_storage().nbytes()
        count.alive += size
        count.peak = max(count.peak, count.alive)

        def freed():
            count.alive -= size

        weakref.finalize(copy.untyped_storage(), freed)
        return copy

    monkeypatch.setattr(transfer, "to_cpu", to_cpu)
    monkeypatch.setattr(transfer, "_record_event", lambda device: SimpleNamespace(synchronize=lambda: None))
    return count


def free_memory(monkeypatch, device_gib, ram_gib=64.0):
    """Let so much be free on the device, beside the weights, and in RAM."""
    monkeypatch.setattr(
        decoding, "free_bytes_after_loading", lambda *_: host_vae.FREE_SHARE * device_gib * GIB
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: ram_gib * GIB)
    monkeypatch.setattr(memory, "device_context", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(
        decoding, "FiniteCheck", lambda device: SimpleNamespace(update=lambda x: None, passed=lambda: True)
    )


def vae_around(network):
    return SimpleNamespace(
        first_stage_model=network,
        device=torch.device("cuda"),
        vae_dtype=torch.bfloat16,
        patcher=None,
        process_output=lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0),
        spacial_compression_decode=lambda: 16,
    )


@pytest.fixture
def later_frames_are_empty(monkeypatch):
    """Compute three latent frames of every strip; of the others, which take the same, only make room."""
    strip, used = strips.StripDecoder._strip, {}

    def first_ones(self, features, begin, end, cache):
        count, pixels = used.get(id(cache), (0, None))
        if count >= 3:
            return torch.empty(pixels, dtype=torch.uint8, device="cuda")
        made = strip(self, features, begin, end, cache)
        used[id(cache)] = count + 1, made.shape
        return made

    group = strips.StripDecoder._groups
    monkeypatch.setattr(strips.StripDecoder, "_strip", first_ones)
    monkeypatch.setattr(strips.StripDecoder, "_groups", lambda self, z: used.clear() or group(self, z))


def decoded_bytes(frames):
    """Decode a clip to bytes; return the peaks (device, RAM without the frames, both in GiB) and sizes."""
    with on_fake_cuda() as meter:
        vae = vae_around(real_autoencoder())
        weights = meter.alive["cuda"]
        latent = torch.zeros(1, 48, (frames - 1) // 4 + 1, HEIGHT // 16, WIDTH // 16)
        meter.reset()
        held = meter.alive["cpu"]
        sizes = []
        for made in decoding.decode_bytes(vae, latent):
            sizes.append(len(made))
            del made
        clip = frames * HEIGHT * WIDTH * 3
        return (meter.peak["cuda"] - weights) / GIB, (meter.peak["cpu"] - held - clip) / GIB, sizes


@pytest.mark.parametrize(
    ("frames", "free", "most_on_device", "most_in_ram"),
    [(81, 11, 10, 6), (81, 6.5, 6.2, 6), (241, 11, 10, 8), (241, 6.5, 6.2, 8)],
)
def test_a_2k_decode_takes_little(
    pinned, monkeypatch, later_frames_are_empty, frames, free, most_on_device, most_in_ram
):
    free_memory(monkeypatch, free)
    on_device, in_ram, sizes = decoded_bytes(frames)
    print(f"{frames} frames, {free} GiB free: GPU {on_device:.2f}, RAM {in_ram:.2f}, ", end="")
    print(f"pinned {pinned.peak / GIB:.2f} GiB")
    assert on_device <= most_on_device and in_ram <= most_in_ram and pinned.peak <= GIB
    assert sizes == [1] + [4] * ((frames - 1) // 4)


@pytest.mark.parametrize("free", [18, 24])
def test_with_enough_memory_ram_does_not_grow_with_the_clip(
    pinned, monkeypatch, later_frames_are_empty, free
):
    def in_ram(frames):
        free_memory(monkeypatch, free)
        return decoded_bytes(frames)[1] + frames * HEIGHT * WIDTH * 3 / GIB

    latent = 5 * 48 * (HEIGHT // 16) * (WIDTH // 16) * 4 / GIB
    assert in_ram(41) <= in_ram(21) + latent


PLANS = [
    (1, 2, 1, 0), (2, 4, 1, 0), (4, 2, 1, 0), (3, 4, 3, 3), (6, 4, 6, 3), (12, 2, 12, 3), (64, 1, 64, 0),
]  # fmt: skip


@pytest.mark.parametrize("cut", PLANS)
def test_a_decode_takes_what_was_counted(cut):
    plan = memory_plan.DecodePlan(*cut)
    with on_fake_cuda() as meter:
        network = real_autoencoder()
        weights = meter.alive["cuda"]
        latent = torch.zeros(1, 48, 3, HEIGHT // 16, WIDTH // 16, device="cuda", dtype=torch.bfloat16)
        decoder = strips.StripDecoder(network, plan, lambda pixels: pixels.float().half())
        meter.reset()
        for pixels in decoder.decode(latent):
            del pixels
        counted = memory_plan.decode_cost(network.decoder, HEIGHT // 16, WIDTH // 16, 2, plan, 3)
        assert 0.8 * counted.device_bytes < meter.peak["cuda"] - weights <= counted.device_bytes


ENCODE_PLANS = [(1, 1), (2, 1), (8, 1), (4, 2), (16, 2), (16, 4), (16, 16)]


def frames_of_2k():
    return (
        torch.empty(count, HEIGHT, WIDTH, 3, dtype=torch.bfloat16, device="cuda") for count in (1, 4, 4)
    )


class Restarting:
    """Frames that can be iterated more than once."""

    def __iter__(self):
        return frames_of_2k()


@pytest.mark.parametrize("cut", ENCODE_PLANS)
def test_an_encode_takes_what_was_counted(cut):
    plan = memory_plan.EncodePlan(*cut)
    with on_fake_cuda() as meter:
        network = real_autoencoder()
        weights = meter.alive["cuda"]
        meter.reset()
        for latent_frame in strips.StripEncoder(network, plan).encode(Restarting()):
            del latent_frame
        counted = memory_plan.encode_cost(network.encoder, HEIGHT, WIDTH, 2, plan, 3)
        peak = meter.peak["cuda"] - weights
        assert 0.75 * counted.device_bytes < peak <= counted.device_bytes
        assert cut != (16, 4) or peak < 4 * GIB


def test_sixteen_strips_encode_2k_in_less_than_4_gib(shapes):
    cost = memory_plan.encode_cost(shapes.encoder, HEIGHT, WIDTH, 2, memory_plan.EncodePlan(16, 4), 21)
    assert cost.device_bytes < 4 * GIB


# --- The planner ----------------------------------------------------------------------------------


def decode_plan(shapes, free, latent_frames=21, ram=64.0, size=(88, 160)):
    return memory_plan.plan_decode(shapes.decoder, *size, 2, free * GIB, latent_frames, ram * GIB)


def decode_cost(shapes, plan, latent_frames=21, size=(88, 160)):
    return memory_plan.decode_cost(shapes.decoder, *size, 2, plan, latent_frames)


@pytest.mark.parametrize("latent_frames", [21, 61])
@pytest.mark.parametrize("free", [2, 3, 4.5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 24, 60])
def test_a_plan_fits_into_what_is_free(shapes, free, latent_frames):
    cost = decode_cost(shapes, decode_plan(shapes, free, latent_frames), latent_frames)
    assert cost.device_bytes <= free * GIB
    assert cost.ram_bytes <= memory_plan.MOST_KEPT_BYTES


def test_more_memory_never_means_more_work(shapes):
    costs = [decode_cost(shapes, decode_plan(shapes, free)) for free in (2, 4, 6, 7, 9, 11, 13, 15)]
    assert all(later.work <= earlier.work for earlier, later in itertools.pairwise(costs))
    assert costs[3].work < 1.25 * decode_cost(shapes, memory_plan.DecodePlan(1)).work


def test_between_7_and_16_gib_the_memory_is_used(shapes):
    for free in range(7, 17):
        cost = decode_cost(shapes, decode_plan(shapes, free))
        assert cost.device_bytes > 0.75 * free * GIB


def test_tensors_beyond_32_bits_are_not_made(shapes):
    whole = decode_cost(shapes, memory_plan.DecodePlan(1))
    assert whole.largest == 6 * 704 * 1280 * 512 > 2**31
    plan = decode_plan(shapes, 100)
    assert plan.strips > 1 or plan.frames < 4
    assert decode_cost(shapes, plan).largest < 2**31
    large = decode_plan(shapes, 200, size=(136, 240))
    assert decode_cost(shapes, large, size=(136, 240)).largest < 2**31


@pytest.mark.parametrize("ram", [0.0, 1.0, 3.0])
def test_features_are_kept_only_in_free_ram(shapes, ram):
    plan = decode_plan(shapes, 6, ram=ram)
    assert decode_cost(shapes, plan).ram_bytes <= ram * GIB
    assert plan.groups > 1


def test_less_ram_costs_work_but_no_gpu_memory(shapes):
    plenty, none = (decode_cost(shapes, decode_plan(shapes, 6, ram=ram)) for ram in (64, 0))
    assert none.ram_bytes == 0 < plenty.ram_bytes
    assert none.work > plenty.work and none.device_bytes <= 6 * GIB


def test_the_counter_knows_the_halos(shapes):
    _, *tail = strips.layers.stages(shapes.decoder.upsamples)
    assert counting.tail_halos(tail) == [12, 10, 7]
    first, second, *_ = strips.layers.stages(shapes.encoder.downsamples)
    assert counting.encoder_halos([first, second]) == [6, 6]


def test_only_encodes_that_save_memory_are_chosen(shapes):
    chosen = [
        memory_plan.plan_encode(shapes.encoder, HEIGHT, WIDTH, 2, free * GIB, 21)
        for free in (12, 8, 7, 6, 5, 4, 3, 2.5)
    ]
    costs = [memory_plan.encode_cost(shapes.encoder, HEIGHT, WIDTH, 2, plan, 21) for plan in chosen]
    peaks = [cost.device_bytes for cost in costs]
    assert peaks == sorted(peaks, reverse=True) and chosen[0] == memory_plan.EncodePlan(1)


# --- Through the nodes ----------------------------------------------------------------------------


def planner(shapes, monkeypatch, free, ram, frames_given=False, latent_frames=21):
    free_memory(monkeypatch, free, ram)
    latent = torch.empty(1, 48, latent_frames, HEIGHT // 16, WIDTH // 16, device="meta")
    return decoding.DecodePlanner(vae_around(shapes), latent, frames_given)


def test_too_little_ram_for_the_frames_is_refused_in_a_sentence(shapes, monkeypatch):
    with pytest.raises(
        RuntimeError, match=r"2560x1408.*takes about 836\.6 MiB.*computer's memory"
    ) as caught:
        planner(shapes, monkeypatch, free=11, ram=0.5).first()
    assert "the nearest size that fits is" in str(caught.value)


def test_frames_that_exist_are_not_counted_again(shapes, monkeypatch):
    plan = planner(shapes, monkeypatch, free=11, ram=0.5, frames_given=True).first()
    assert plan.groups > 1 and decode_cost(shapes, plan).ram_bytes <= 0.5 * GIB


def test_running_out_of_ram_never_takes_more_of_it(shapes, monkeypatch):
    planning = planner(shapes, monkeypatch, free=6.5, ram=64, frames_given=True)
    plan, used = planning.first(), []
    with pytest.raises(RuntimeError, match="the computer's memory"):
        while True:
            used.append(decode_cost(shapes, plan).ram_bytes)
            plan = planning.smaller(plan, of_cpu=True)
    assert used[0] > 4 * GIB and used[-1] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(used))


def test_running_out_on_the_device_takes_less_each_time(shapes, monkeypatch):
    planning = planner(shapes, monkeypatch, free=30, ram=64)
    plan, used = planning.first(), []
    with pytest.raises(torch.OutOfMemoryError, match=r"even in \d+ strips"):
        while True:
            used.append(decode_cost(shapes, plan).device_bytes)
            plan = planning.smaller(plan, of_cpu=False)
    assert used[0] > 15 * GIB and used[-1] < 2 * GIB
    assert all(later < earlier for earlier, later in itertools.pairwise(used))


def test_weights_that_arrive_later_are_taken_off(shapes, monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "make_room", lambda patcher, needed: asked.append(needed))
    monkeypatch.setattr(memory, "total_bytes", lambda device: 100 * GIB)
    monkeypatch.setattr(memory, "free_bytes_beside", lambda patcher, device: 10 * GIB)
    weights = sum(parameter.nbytes for parameter in shapes.decoder.parameters())
    free = {}
    for dynamic in (False, True):
        vae = SimpleNamespace(device=memory.CPU, patcher=SimpleNamespace(is_dynamic=lambda d=dynamic: d))
        free[dynamic] = host_vae.free_bytes_after_loading(vae, 5 * GIB, [shapes.decoder])
    assert weights > GIB and asked == [5 * GIB, 5 * GIB + weights]
    assert free[False] == pytest.approx(9 * GIB) and free[False] - free[True] == pytest.approx(weights)


def test_every_step_runs_in_the_context_of_its_device(monkeypatch):
    """Between steps, which a consumer may spend on another device, the context is left."""
    log = []

    @contextlib.contextmanager
    def context(device):
        log.append(f"enter {device}")
        yield
        log.append("leave")

    def steps():
        for number in range(2):
            log.append(f"work {number}")
            yield number

    monkeypatch.setattr(memory.model_management, "cuda_device_context", context, raising=False)
    for number in memory.on_device(torch.device("cuda:1"), steps()):
        log.append(f"use {number}")
    assert log == [
        *("enter cuda:1", "work 0", "leave", "use 0"),
        *("enter cuda:1", "work 1", "leave", "use 1"),
        *("enter cuda:1", "leave"),
    ]


def test_a_comfyui_without_device_contexts_still_works(monkeypatch):
    monkeypatch.delattr(memory.model_management, "cuda_device_context", raising=False)
    assert list(memory.on_device(memory.CPU, iter([1, 2]))) == [1, 2]
