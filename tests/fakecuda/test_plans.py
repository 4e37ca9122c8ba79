"""Every plan of a decode or encode at 2560x1408: its need, its pinned memory, its largest tensor."""

import pytest
from expectations import expect_indexable_tensors, expect_pinned, expect_planned_memory
from fake_machine import GIB, Card, fake_machine
from host_models import wan_vae
from plans import decode_plans, encode_plans, measure, name_of, plan_for

LATENT_FRAMES = 2
"""Latent frames after which nothing more is kept: the first is one frame, all others are alike."""

PIECES_GIB = 0.078
"""Pinned memory of the pieces on their way to the CPU: one frame and four, rounded to powers of two."""

CARDS = [12, 16, 24, 32]
TOO_SMALL = pytest.param(
    8, marks=pytest.mark.xfail(strict=True, reason="an encode takes 6.8 GiB in any number of strips")
)


def _every_plan():
    with fake_machine():
        vae = wan_vae(48)
        return decode_plans(vae, LATENT_FRAMES), encode_plans(vae, LATENT_FRAMES)


DECODES, ENCODES = _every_plan()


def offloads(plan):
    return getattr(plan, "offload", False)


def with_known_fault(plans, faulty, reason):
    """Return parameters; those with a known fault must fail until it is mended."""
    fails = pytest.mark.xfail(strict=True, reason=reason)
    return [pytest.param(plan, marks=fails if faulty(plan) else ()) for plan in plans]


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


@pytest.mark.parametrize(
    "plan",
    with_known_fault(
        DECODES, offloads, "they take 0.78 and 0.85 of the stated need with 81 frames, less with fewer"
    ),
    ids=name_of,
)
def test_a_decode_takes_what_its_plan_states(decoded, plan):
    expect_planned_memory(decoded(plan))


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_an_encode_takes_what_its_plan_states(encoded, plan):
    expect_planned_memory(encoded(plan))


@pytest.mark.parametrize(
    "plan",
    with_known_fault(
        DECODES, lambda plan: plan.strips == 1, "a convolution's input in one strip has 2.8e9 elements"
    ),
    ids=name_of,
)
def test_no_tensor_of_a_decode_is_beyond_32_bits(decoded, plan):
    expect_indexable_tensors(decoded(plan))


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_no_tensor_of_an_encode_is_beyond_32_bits(encoded, plan):
    expect_indexable_tensors(encoded(plan))


PINNED_GIB = {8: 13.43, 16: 15.7, 32: 20.2, 64: 29.2}
"""Pinned memory of plans that offload frame caches, by their strips."""


@pytest.mark.parametrize("plan", DECODES, ids=name_of)
def test_a_decode_pins_its_pieces_and_what_it_offloads(decoded, plan):
    expect_pinned(decoded(plan), PINNED_GIB[plan.strips] if offloads(plan) else PIECES_GIB)


@pytest.mark.parametrize("plan", ENCODES, ids=name_of)
def test_an_encode_pins_nothing(encoded, plan):
    expect_pinned(encoded(plan), 0)


@pytest.mark.parametrize("plan", [plan for plan in DECODES if not offloads(plan)], ids=name_of)
def test_only_the_latent_goes_to_the_gpu_and_only_bytes_come_back(decoded, plan):
    measured = decoded(plan)
    assert measured.to_cpu == 2560 * 1408 * 3 * (4 * LATENT_FRAMES - 3)
    assert measured.to_gpu == 48 * LATENT_FRAMES * 88 * 160 * 2


@pytest.mark.parametrize("gib", [TOO_SMALL, *CARDS])
def test_the_plan_of_a_card_fits_the_card(gib, decoded, encoded):
    with fake_machine(Card(gib)) as meter:
        vae = wan_vae(48)
        plans = [plan_for(work, vae, LATENT_FRAMES) for work in ("decode", "encode")]
        free = Card(gib).free_gib * GIB - meter.gpu.live
    assert decoded(plans[0]).peak <= free
    assert encoded(plans[1]).peak <= free
