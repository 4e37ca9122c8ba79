"""Plans by free memory, and that the work takes what was planned."""

import dataclasses

import comfy.ops
import pytest
import torch
from autoencoders import Held, random_latent, raw, unpinned
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.swifti2v_core.vae import memory_plan
from swifti2v.swifti2v_core.vae import strips as streaming


@pytest.fixture(scope="module")
def real():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


PLANS_OF_2K = [(strips, 1, False) for strips in (1, 2, 4)] + [(strips, 6, True) for strips in (8, 16, 32)]


@pytest.fixture
def shapes_alone(monkeypatch):
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

    monkeypatch.setattr(streaming.layers, "convolve", convolve)
    monkeypatch.setattr(comfy.ops.disable_weight_init.Conv2d, "forward", on_pictures)
    monkeypatch.setattr(wan22.AttentionBlock, "forward", lambda self, x: torch.empty_like(x))
    monkeypatch.setattr(streaming.layers.F, "rms_norm", lambda x, *_: torch.empty_like(x))


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
def test_a_2k_decode_takes_what_was_planned(real, shapes_alone, cut, monkeypatch):
    plan = memory_plan.DecodePlan(*cut)
    monkeypatch.setattr("PinnedCache", Elsewhere)
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        latent = torch.empty(1, 48, 2 + plan.latent_frames, 88, 160, dtype=torch.bfloat16)
        decoder = streaming.StripDecoder(real, plan, lambda pixels: pixels.float().half(), unpinned)
        for frames in decoder.decode(latent):
            del frames
    planned = memory_plan.decode_memory_bytes(real.decoder, 88, 160, 2, plan)
    assert 0.7 * planned < peak.most <= planned


@pytest.mark.parametrize("strips", [1, 2, 4, 8, 16])
def test_a_2k_encode_takes_what_was_planned(real, shapes_alone, strips):
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        pieces = (torch.empty(count, 1408, 2560, 3, dtype=torch.bfloat16) for count in (1, 4, 4))
        list(streaming.StripEncoder(real, strips).encode(pieces))
    planned = memory_plan.encode_memory_bytes(real.encoder, 1408, 2560, 2, strips)
    assert 0.7 * planned < peak.most <= planned


def test_plans_by_free_memory(real):
    def plan(gibibytes):
        return memory_plan.plan_decode(real.decoder, 88, 160, 2, gibibytes * 2**30)

    assert plan(60) == memory_plan.DecodePlan(1, 1)
    assert plan(20) == memory_plan.DecodePlan(2, 1)
    assert plan(17.5) == memory_plan.DecodePlan(4, 1)
    assert plan(10) == memory_plan.DecodePlan(8, 6, offload=True)
    assert plan(1) == memory_plan.DecodePlan(64, 1, offload=True)  # the smallest: try it
    strips = [memory_plan.plan_encode(real.encoder, 1408, 2560, 2, size * 2**30) for size in (20, 8, 6, 1)]
    assert strips == sorted(strips) and strips[0] == 1 and strips[-1] == 16


def test_smaller_plans_are_all_tried():
    plan, plans = memory_plan.DecodePlan(1, 1), []
    while plan:
        plans.append(plan)
        plan = memory_plan.smaller_plan(plan)
    assert tuple(plans) == memory_plan.DECODE_PLANS


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_memories_are_counted_exactly(family, size, monkeypatch):
    latent = random_latent(family, 2, *size)
    decoder = streaming.StripDecoder(family, memory_plan.DecodePlan(1, 1), raw, unpinned)
    with torch.inference_mode():
        list(decoder.decode(latent))
    held = sum(part.numel() * 4 for part in decoder._strip_caches[0].values())
    monkeypatch.setattr("DECODE_COPIES", 0)
    nothing_whole = dataclasses.replace(memory_plan.DecodePlan(1, 1), latent_frames=0)
    assert memory_plan.decode_memory_bytes(family.decoder, *size, 4, nothing_whole) == held


def test_strips_cover_everything_once():
    for length in (1, 5, 176):
        for strips in (1, 2, 7, 300):
            ranges = memory_plan.strip_ranges(length, strips)
            assert [place for begin, end in ranges for place in range(begin, end)] == list(range(length))
