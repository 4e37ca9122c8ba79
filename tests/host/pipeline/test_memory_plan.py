"""Which plans a 2560x1408 decode and encode choose; `tests/fakecuda` tests that they hold."""

import itertools

import pytest
import torch
from autoencoders import random_latent, raw
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.swifti2v_core.vae import counting, memory_plan
from swifti2v.swifti2v_core.vae import strips as streaming

GIB = 2**30
HEIGHT, WIDTH = 1408, 2560


@pytest.fixture(scope="module")
def real():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


def decode_plan(real, free, latent_frames=21, ram=64.0, size=(88, 160), element_size=2):
    return memory_plan.plan_decode(real.decoder, *size, element_size, free * GIB, latent_frames, ram * GIB)


def decode_cost(real, plan, latent_frames=21, size=(88, 160), element_size=2):
    return memory_plan.decode_cost(real.decoder, *size, element_size, plan, latent_frames)


def encode_plan(real, free, ram=64.0):
    return memory_plan.plan_encode(real.encoder, HEIGHT, WIDTH, 2, free * GIB, 21, ram * GIB)


def encode_cost(real, plan):
    return memory_plan.encode_cost(real.encoder, HEIGHT, WIDTH, 2, plan, 21)


@pytest.mark.parametrize("latent_frames", [21, 61])
@pytest.mark.parametrize("free", [2, 3, 4.5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 24, 60])
def test_a_plan_fits_into_what_is_free(real, free, latent_frames):
    cost = decode_cost(real, decode_plan(real, free, latent_frames), latent_frames)
    assert cost.device_bytes <= free * GIB
    assert cost.ram_bytes <= memory_plan.MOST_KEPT_BYTES


def test_more_memory_never_means_more_work(real):
    costs = [decode_cost(real, decode_plan(real, free)) for free in (2, 4, 6, 7, 9, 11, 13, 15)]
    assert all(later.work <= earlier.work for earlier, later in itertools.pairwise(costs))
    assert costs[3].work < 1.25 * decode_cost(real, memory_plan.DecodePlan(1)).work


def test_between_7_and_16_gib_the_memory_is_used(real):
    for free in range(7, 17):
        assert decode_cost(real, decode_plan(real, free)).device_bytes > 0.7 * free * GIB


def test_tensors_beyond_32_bits_are_not_made(real):
    whole = decode_cost(real, memory_plan.DecodePlan(1))
    assert whole.largest == 6 * 704 * 1280 * 512 > 2**31
    for size in ((88, 160), (136, 240), (272, 480)):
        plan = decode_plan(real, 500, size=size)
        assert decode_cost(real, plan, size=size).largest < 2**31


def test_a_32_bit_vae_on_a_24_gib_card_gets_no_needlessly_small_plan(real):
    plan = decode_plan(real, 18, element_size=4)
    cost = decode_cost(real, plan, element_size=4)
    assert 0.7 * 18 * GIB < cost.device_bytes <= 18 * GIB
    assert cost.work < 1.15 * decode_cost(real, memory_plan.DecodePlan(1), element_size=4).work


def test_one_group_is_preferred_because_its_frames_are_finished_in_order(real):
    for free in range(2, 60):
        plan = decode_plan(real, free)
        assert (plan.groups == 1) == (free >= 16)
        assert plan.groups > 1 or decode_cost(real, plan).ram_bytes == 0


@pytest.mark.parametrize("ram", [0.0, 1.0, 3.0])
def test_features_are_kept_only_in_free_ram(real, ram):
    plan = decode_plan(real, 6, ram=ram)
    assert decode_cost(real, plan).ram_bytes <= ram * GIB
    assert plan.groups > 1


def test_less_ram_costs_work_but_no_gpu_memory(real):
    plenty, none = (decode_cost(real, decode_plan(real, 6, ram=ram)) for ram in (64, 0))
    assert none.ram_bytes == 0 < plenty.ram_bytes
    assert none.work > plenty.work and none.device_bytes <= 6 * GIB


def test_running_the_front_again_takes_4_percent_of_a_decode(real):
    once, again = (decode_cost(real, memory_plan.DecodePlan(4, 4, groups)) for groups in (1, 2))
    assert 0.03 < again.work / once.work - 1 < 0.05


def test_features_that_cost_more_to_copy_than_to_compute_are_not_kept(real, monkeypatch):
    assert decode_plan(real, 6).kept == 21
    monkeypatch.setattr(counting, "WORK_PER_RAM_BYTE", 10 * counting.WORK_PER_RAM_BYTE)
    assert decode_plan(real, 6).kept == 0


def test_the_counter_knows_the_halos(real):
    _, *tail = streaming.layers.stages(real.decoder.upsamples)
    assert counting.tail_halos(tail) == [12, 10, 7]
    first, second, *_ = streaming.layers.stages(real.encoder.downsamples)
    assert counting.encoder_halos([first, second]) == [6, 6]


def test_only_encodes_that_save_memory_are_chosen(real):
    chosen = [encode_plan(real, free) for free in (12, 8, 7, 6, 5, 4, 3, 2.5, 0)]
    peaks = [encode_cost(real, plan).device_bytes for plan in chosen]
    assert peaks == sorted(peaks, reverse=True) and chosen[0] == memory_plan.EncodePlan(1)
    assert peaks[-1] < 2.5 * GIB


def test_an_encode_in_16_strips_takes_less_than_4_gib(real):
    assert encode_cost(real, memory_plan.EncodePlan(16, 4)).device_bytes < 4 * GIB


def test_an_encode_without_ram_keeps_nothing_in_it(real):
    plan = encode_plan(real, 4, ram=0.0)
    assert plan.groups == 1 and encode_cost(real, plan).ram_bytes == 0


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
