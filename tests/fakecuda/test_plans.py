"""Every plan of a decode or encode at 2560x1408: its need, its copies, its largest tensor."""

import pytest
from expectations import expect_indexable_tensors, expect_pinned, expect_planned_memory
from fake_machine import GIB, Card, fake_machine
from host_models import wan_vae
from plans import decode_plans, encode_plans, measure, name_of, plan_for

LATENT_FRAMES = 2
"""Latent frames after which nothing more is kept: the first is one frame, all others are alike."""

PIECES_GIB = 0.078
"""Pinned memory of the pieces on their way to the CPU: one frame and four, rounded to powers of two."""

FRAME_BYTES = 2560 * 1408 * 3
CLIP_BYTES = (4 * LATENT_FRAMES - 3) * FRAME_BYTES
FEATURE_BYTES = 176 * 320 * 1024 * 2
LATENT_BYTES = 48 * LATENT_FRAMES * 88 * 160 * 2

CARDS = [6, 8, 12, 16, 24, 32]


def _every_plan():
    with fake_machine():
        vae = wan_vae(48)
        return decode_plans(vae, LATENT_FRAMES), encode_plans(vae, LATENT_FRAMES)


DECODES, ENCODES = _every_plan()


@pytest.fixture(scope="module")
def decoded():
    """Measure a decode with a plan, once for all tests."""
    return _once("decode")


@pytest.fixture(scope="module")
def encoded():
    """Measure an encode with a plan, once for all tests."""
    return _once("encode")


def _once(work):
    known = {}

    def measured(plan):
        if plan not in known:
            with fake_machine(Card(gib=80)) as meter:
                known[plan] = measure(work, meter, wan_vae(48), plan, LATENT_FRAMES)
        return known[plan]

    return measured


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_a_decode_takes_what_its_plan_states(decoded, plan):
    expect_planned_memory(decoded(plan))


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_an_encode_takes_what_its_plan_states(encoded, plan):
    expect_planned_memory(encoded(plan))


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_no_tensor_of_a_decode_is_beyond_32_bits(decoded, plan):
    expect_indexable_tensors(decoded(plan))


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_no_tensor_of_an_encode_is_beyond_32_bits(encoded, plan):
    expect_indexable_tensors(encoded(plan))


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_a_decode_pins_only_its_pieces(decoded, plan):
    measured = decoded(plan)
    if plan.groups == 1:
        expect_pinned(measured, PIECES_GIB)
    assert measured.pinned <= 1.05 * PIECES_GIB * GIB


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_an_encode_pins_nothing(encoded, plan):
    expect_pinned(encoded(plan), 0)


def kept_bytes(plan):
    """Features that a plan keeps: latent frame 0 has one frame of them, others two."""
    assert plan.kept in (0, LATENT_FRAMES)
    return (2 * plan.kept - 1) * FEATURE_BYTES if plan.kept else 0


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_only_bytes_and_features_leave_the_gpu_and_only_features_come_back(decoded, plan):
    """No frame cache does: kept features leave once, and each later group reads its part of them."""
    measured = decoded(plan)
    assert measured.to_cpu == CLIP_BYTES + kept_bytes(plan)
    most_read = kept_bytes(plan) * (1 + 2 * 12 * plan.groups / 320)  # a halo of 12 cells of 320
    assert LATENT_BYTES <= measured.to_gpu <= LATENT_BYTES + most_read
    assert plan.groups > 1 or measured.to_gpu == LATENT_BYTES


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_a_decode_takes_the_ram_that_its_plan_states(decoded, plan):
    measured = decoded(plan)
    waiting = CLIP_BYTES if plan.groups > 1 else 0
    # And pieces on their way: one frame and four.
    assert kept_bytes(plan) <= measured.ram
    assert measured.ram <= measured.stated_ram + waiting + 5.5 * FRAME_BYTES


@pytest.mark.parametrize("gib", CARDS)
def test_the_plan_of_a_card_fits_the_card(gib, decoded, encoded):
    with fake_machine(Card(gib)) as meter:
        vae = wan_vae(48)
        plans = [plan_for(work, vae, LATENT_FRAMES) for work in ("decode", "encode")]
        free = Card(gib).free_gib * GIB - meter.gpu.live
    assert decoded(plans[0]).peak <= free
    assert encoded(plans[1]).peak <= free
