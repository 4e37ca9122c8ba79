"""Whole clips of 2560x1408 on small cards: GPU peak, pinned memory and RAM."""

import pytest
from fake_machine import GIB, Card, fake_machine
from host_models import wan_vae
from plans import decode, later_frames_empty, measure, plan_for

FRAME_GIB = 2560 * 1408 * 3 / GIB
LATENT_GIB = 48 * 88 * 160 * 4 / GIB
VAE_GIB = 1.32


def decoded(frames, free_gib, ram_gib=48.0):
    """Decode a clip where so much is free beside the VAE's weights; return the plan and what it took."""
    latent_frames = (frames + 3) // 4
    with fake_machine(Card(free_gib + VAE_GIB, used_gib=0, ram_gib=ram_gib)) as meter:
        vae = wan_vae(48)
        assert abs(meter.gpu.live / GIB - VAE_GIB) < 0.02
        plan = plan_for("decode", vae, latent_frames)
        with later_frames_empty():
            return plan, measure("decode", meter, vae, plan, latent_frames)


@pytest.mark.parametrize(
    ("frames", "free", "most_gpu", "most_ram"),
    [(81, 11, 10, 6), (81, 6.5, 6.2, 6), (241, 11, 10, 8), (241, 6.5, 6.2, 8)],
)
def test_a_small_card_decodes_with_little_memory(frames, free, most_gpu, most_ram):
    plan, took = decoded(frames, free)
    assert took.peak <= most_gpu * GIB
    assert took.peak > 0.7 * free * GIB  # a small plan would be slow
    assert took.pinned <= GIB
    assert took.ram <= (frames * FRAME_GIB + most_ram) * GIB
    # Features leave once, and each later group reads its part of them.
    assert took.to_gpu <= 1.2 * took.to_cpu
    assert plan.groups > 1


def test_with_18_gib_ram_does_not_grow_with_the_clip():
    (plan, short), (_, long) = (decoded(frames, 18) for frames in (21, 81))
    assert plan.groups == 1
    assert long.ram - short.ram <= 1.01 * 15 * LATENT_GIB * GIB


def test_without_ram_the_front_runs_again():
    plan, took = decoded(81, 6.5, ram_gib=1.2)
    assert plan.groups > 1 and plan.kept <= 1
    assert took.peak <= 6.2 * GIB and took.ram <= 1.2 * GIB


def test_ram_too_small_for_the_frames_is_refused_before_the_decode():
    with fake_machine(Card(8, ram_gib=0.5)) as meter:
        vae = wan_vae(48)
        meter.start()
        with pytest.raises(RuntimeError, match=r"takes about .* MiB, ran out of the computer's memory"):
            decode(vae, 21)
        assert meter.peak == 0
