"""Faults that a GPU would show, planted: the suite must find every one."""

from unittest import mock

import pytest
import torch
from comfy import model_management
from comfy.ldm.wan.model import WanModel
from expectations import (
    expect_pinned,
    expect_sampling,
    expect_stored,
    expect_undisturbed_loops,
    expect_waits,
)
from fake_machine import CPU, CUDA
from host_models import run, text, wan_model, wan_vae
from meter import WrongDevice
from plans import decode_plans, measure

SHAPE = (1, 48, 4, 88, 160)


def redraw(meter):
    model = wan_model("TI2V-5B", 96, 1)
    meter.start()
    return run(
        "SwiftI2V_SegmentSampler", model=model, z_ref={"samples": torch.zeros(*SHAPE)}, seed=1, steps=1,
        positive=text(), negative=text(),
    )[0]["samples"]  # fmt: skip


def encode(vae):
    photo, motion = torch.zeros(1, 1408, 2560, 3), torch.zeros(5, 352, 640, 3)
    return run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, frames=5)[0]["samples"]


def at_every_check_for_cancel(action):
    """Run an action where the pack asks ComfyUI whether the user has cancelled: in its own code."""

    def act() -> None:
        action()

    return mock.patch.object(model_management, "throw_exception_if_processing_interrupted", act)


def test_without_a_fault_nothing_is_found(meter):
    expect_sampling(meter, redraw(meter), SHAPE, samplings=1)
    expect_stored(encode(wan_vae(48)), (1, 48, 2, 88, 160))


def test_rotary_frequencies_on_the_cpu_are_found(meter):
    encode_positions = WanModel.rope_encode

    def on_the_cpu(network, *args, **options):
        return encode_positions(network, *args, **{**options, "device": CPU})

    with (
        mock.patch.object(WanModel, "rope_encode", on_the_cpu),
        pytest.raises(WrongDevice, match="cpu, cuda"),
    ):
        redraw(meter)


def test_a_convolution_of_frames_on_the_cpu_is_found(meter):
    vae = wan_vae(48)
    vae.process_input = lambda frames: frames.cpu() * 2 - 1
    with pytest.raises(WrongDevice, match="conv"):
        encode(vae)


def test_frames_in_another_dtype_than_the_weights_are_found(meter):
    vae = wan_vae(48)
    vae.vae_dtype = torch.float32
    with pytest.raises(RuntimeError, match="type"):
        encode(vae)


def test_a_result_left_on_the_gpu_is_found(meter):
    with (
        mock.patch("swifti2v.nodes.comfyui.sampling.to_storage", torch.Tensor.float),
        pytest.raises(AssertionError),
    ):
        expect_sampling(meter, redraw(meter), SHAPE, samplings=1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda: torch.zeros(1, device=CUDA).mean().item(),
        lambda: torch.zeros(9, 9, device=CUDA).cpu(),
        lambda: torch.zeros(9, 9).to(CUDA),
        lambda: torch.zeros(9, 9, device=CUDA)[:, [0, 1]],
        torch.cuda.synchronize,
    ],
    ids=["a value read", "a copy to the CPU", "a copy to the GPU", "indices from the CPU", "synchronize"],
)
def test_what_disturbs_the_sampling_loop_is_found(meter, fault):
    with at_every_check_for_cancel(fault):
        latent = redraw(meter)
    assert latent.shape == SHAPE
    with pytest.raises(AssertionError, match=r"nodes/comfyui/progress.py:\d+ in the sampling loop"):
        expect_undisturbed_loops(meter)


def test_a_second_copy_of_a_result_is_found(meter):
    where = model_management.intermediate_device

    def copied_before():
        torch.zeros(9, 9, device=CUDA).cpu()
        return where()

    with mock.patch.object(model_management, "intermediate_device", copied_before):
        latent = redraw(meter)
    with pytest.raises(AssertionError, match="cuda->cpu"):
        expect_sampling(meter, latent, SHAPE, samplings=1)


def test_pinned_memory_beside_the_pieces_is_found(meter):
    vae, kept = wan_vae(48), []
    plan = decode_plans(vae, 1)[0]
    expect_pinned(measure("decode", meter, vae, plan, 1), 1 / 64)
    fault = at_every_check_for_cancel(lambda: kept.append(torch.empty(2**26, pin_memory=True)))
    with fault, pytest.raises(AssertionError, match="pinned"):
        expect_pinned(measure("decode", meter, vae, plan, 1), 1 / 64)


def test_a_wait_at_every_strip_is_found(meter):
    vae = wan_vae(48)
    with at_every_check_for_cancel(torch.cuda.synchronize):
        measure("decode", meter, vae, decode_plans(vae, 1)[0], 1)
    with pytest.raises(AssertionError, match="synchronize"):
        expect_waits(meter, {"event": 1, "aten.is_nonzero.default": 2})
