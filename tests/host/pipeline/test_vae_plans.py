"""Plans through the nodes: chosen by what is free, then by what has failed, in the VAE's device context."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.wan import vae2_2 as wan22
from swifti2v.nodes.comfyui import memory
from swifti2v.nodes.comfyui import vae as host_vae
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import encode as encoding
from swifti2v.nodes.pipeline import vae_plans

GIB = 2**30
HEIGHT, WIDTH = 1408, 2560


@pytest.fixture(scope="module")
def shapes():
    """The shapes of the real Wan2.2 VAE, without weights."""
    with torch.device("meta"):
        return wan22.WanVAE(dim=160, dec_dim=256, z_dim=48, temperal_downsample=[False, True, True])


@pytest.fixture
def vae(shapes):
    """A VAE on a GPU."""
    return SimpleNamespace(
        first_stage_model=shapes,
        device=torch.device("cuda"),
        vae_dtype=torch.bfloat16,
        patcher=None,
        spacial_compression_decode=lambda: 16,
    )


@pytest.fixture
def free_memory(monkeypatch):
    """Let so many GiB be free on the device, beside the weights, and in RAM."""

    def set_free(device, ram):
        free = host_vae.FREE_SHARE * device * GIB
        monkeypatch.setattr(vae_plans, "free_bytes_after_loading", lambda *_: free)
        monkeypatch.setattr(memory, "free_bytes", lambda device: ram * GIB)

    return set_free


def decode_planner(vae, value_bytes=1, latent_frames=21):
    latent = torch.empty(1, 48, latent_frames, HEIGHT // 16, WIDTH // 16, device="meta")
    return decoding.decode_planner(vae, latent, value_bytes)


def failing(planner, of_cpu):
    """Return what each plan takes until none is left, when every one runs out of memory."""
    plan, taken = planner.first([]), []
    while plan is not None:
        taken.append(planner.need(plan, of_cpu).needed)
        last, plan = plan, planner.smaller(plan, of_cpu)
    return last, taken


def test_too_little_ram_for_the_frames_is_refused_in_a_sentence(vae, free_memory):
    free_memory(device=11, ram=0.5)
    with pytest.raises(
        RuntimeError, match=r"2560x1408.*takes about 835\.3 MiB.*computer's memory"
    ) as caught:
        decode_planner(vae).first([])
    assert "the nearest size that fits is" in str(caught.value)


def test_frames_that_exist_are_not_counted_again(vae, free_memory):
    free_memory(device=11, ram=0.5)
    planner = decode_planner(vae, value_bytes=0)
    plan = planner.first([])
    assert plan.groups > 1 and planner.need(plan, of_cpu=True).needed <= 0.5 * GIB


def test_running_out_of_ram_never_takes_more_of_it(vae, free_memory):
    free_memory(device=6.5, ram=64)
    _, taken = failing(decode_planner(vae, value_bytes=0), of_cpu=True)
    assert taken[0] > 4 * GIB and taken[-1] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(taken))


def test_an_encode_that_runs_out_of_ram_keeps_less_in_it(vae, free_memory):
    free_memory(device=5, ram=64)
    planner = encoding.encode_planner(vae, 81, HEIGHT, WIDTH)
    _, taken = failing(planner, of_cpu=True)
    assert taken[0] > 0.5 * GIB and taken[-1] == 0
    assert all(later < earlier for earlier, later in itertools.pairwise(taken))


def test_running_out_on_the_device_takes_less_each_time(vae, free_memory):
    free_memory(device=30, ram=64)
    planner = decode_planner(vae)
    last, taken = failing(planner, of_cpu=False)
    assert taken[0] > 15 * GIB and taken[-1] < 2 * GIB
    assert all(later < earlier for earlier, later in itertools.pairwise(taken))
    error = planner.shortage(last, of_cpu=False)
    assert isinstance(error, torch.OutOfMemoryError) and "even in 64 strips" in str(error)


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
