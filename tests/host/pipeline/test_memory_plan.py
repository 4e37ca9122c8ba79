"""Plans by free memory, and that the work takes what was planned."""

import comfy.ops
import pytest
import torch
from autoencoders import Held, random_latent, raw
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.swifti2v_core.vae import counting, memory_plan
from swifti2v.swifti2v_core.vae import strips as streaming


@pytest.fixture(scope="module")
def real():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


PLANS_OF_2K = [(strips, frames) for strips in (1, 2, 4, 8, 16, 32) for frames in (1, 4)]


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


@pytest.mark.parametrize("cut", PLANS_OF_2K)
def test_a_2k_decode_takes_what_was_planned(real, shapes_alone, cut):
    plan = memory_plan.DecodePlan(*cut, groups=max(1, cut[0] // 4))
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        latent = torch.empty(1, 48, 3, 88, 160, dtype=torch.bfloat16)
        decoder = streaming.StripDecoder(real, plan, lambda pixels: pixels.float().half())
        for frames in decoder.decode(latent):
            del frames
    planned = memory_plan.decode_cost(real.decoder, 88, 160, 2, plan, 3).device_bytes
    assert 0.7 * planned < peak.most <= planned


@pytest.mark.parametrize("strips", [1, 2, 4, 8, 16])
def test_a_2k_encode_takes_what_was_planned(real, shapes_alone, strips):
    with torch.device("meta"), torch.inference_mode(), Peak() as peak:
        pieces = (torch.empty(count, 1408, 2560, 3, dtype=torch.bfloat16) for count in (1, 4, 4))
        list(streaming.StripEncoder(real, memory_plan.EncodePlan(strips)).encode(pieces))
    plan = memory_plan.EncodePlan(strips)
    planned = memory_plan.encode_cost(real.encoder, 1408, 2560, 2, plan, 3).device_bytes
    assert 0.7 * planned < peak.most <= planned


def test_plans_by_free_memory(real):
    def plan(gibibytes):
        return memory_plan.plan_decode(real.decoder, 88, 160, 2, gibibytes * 2**30, latent_frames=21)

    assert plan(60) == memory_plan.DecodePlan(1, frames=2)
    assert plan(20) == memory_plan.DecodePlan(2)
    assert plan(16.2) == memory_plan.DecodePlan(4, frames=2)
    assert plan(10) == memory_plan.DecodePlan(3, groups=3, kept=21)
    assert plan(1).strips == plan(1).groups == 64  # the smallest: try it
    plans = [
        memory_plan.plan_encode(real.encoder, 1408, 2560, 2, size * 2**30) for size in (20, 8, 6.2, 1)
    ]
    strips = [plan.strips for plan in plans]
    assert strips == sorted(strips) and strips[0] == 1 and strips[-1] == 16


@pytest.mark.parametrize("size", [(3, 2), (2, 3)])
def test_caches_are_counted_exactly(family, size, monkeypatch):
    latent, caches = random_latent(family, 2, *size), []
    strip = streaming.StripDecoder._strip
    monkeypatch.setattr(
        streaming.StripDecoder, "_strip", lambda self, *args: caches.append(args[-1]) or strip(self, *args)
    )
    with torch.inference_mode():
        list(streaming.StripDecoder(family, streaming.DecodePlan(1), raw).decode(latent))
    held = sum(part.numel() * 4 for part in caches[-1].values())
    assert counting.DecodeCounter(family.decoder, *size, 4).cache_bytes(strips=1) == held


def test_strips_cover_everything_once():
    for length in (1, 5, 176):
        for strips in (1, 2, 7, 300):
            ranges = counting.strip_ranges(length, strips)
            assert [place for begin, end in ranges for place in range(begin, end)] == list(range(length))
