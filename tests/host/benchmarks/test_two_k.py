"""The speed benchmarks at tiny size: every row runs, every difference is rounding; no time is checked."""

import comfy.model_management
import pytest
import torch

from benchmarks.speed import rows, two_k, wan_models
from benchmarks.speed.subject import Sizes, Subject


@pytest.fixture(scope="module")
def one_thread():
    """Several threads only wait for each other on tiny operations."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def subject(one_thread):
    plans = {"2 strips": (2,), "2 strips, one at a time": (2, 2, 2, 3)}
    return Subject(Sizes(64, 32, frames=9, steps=1, divisor=16), plans)


def run(subject, names, cap=0.0, only=""):
    return list(two_k.run_rows(subject, names, [cap], only, 1))


def test_floors_are_those_of_the_real_shapes():
    latent, clip = (21, 88, 160), (81, 1408, 2560)
    assert wan_models.decode_work("Wan2.2", latent).flops == pytest.approx(5.40e15, rel=0.01)
    assert wan_models.encode_work("Wan2.2", clip).flops == pytest.approx(1.03e15, rel=0.01)
    forward = wan_models.forward_work("TI2V-5B", 96, (5, 88, 160))
    assert forward.flops == pytest.approx(271e12, rel=0.01)
    assert forward.bytes == pytest.approx(5.0e9 * wan_models.dtype().itemsize, rel=0.02)


@pytest.mark.parametrize("row", list(rows.ROWS))
def test_every_row_has_values_and_the_same_result(subject, row):
    found = run(subject, [row])
    assert {one.name.split(",")[0] for one in found} == {"host", "ours"}
    for one in found:
        assert not one.failure and one.time > 0 and one.work.flops > 1e6 and one.work.bytes > 1e6
        assert one.errors is None or one.errors[0] < 1e-5
    # Not compared: discarded frames, and samplings with other windows.
    compared = sum(one.errors is not None for one in found)
    assert compared == {"decode": 4, "encode": 2, "window": 2}.get(row, 0)


def test_a_cap_reaches_the_plan_and_is_lifted(subject):
    before = comfy.model_management.get_total_memory()
    (one,) = run(subject, ["decode"], cap=0.01, only="IMAGE")
    assert one.cap == 0.01 and one.errors[0] < 1e-5 and any("Decode" in note for note in one.notes)
    with wan_models.memory_cap(2):
        assert comfy.model_management.get_total_memory() == 2 * 2**30
        assert comfy.model_management.get_free_memory(torch.device("cpu"), True)[0] <= 2 * 2**30
    assert comfy.model_management.get_total_memory() == before


def test_a_cap_on_a_gpu_leaves_what_a_card_of_that_size_would(monkeypatch):
    gpu, gib, fractions = torch.device("cuda"), 2**30, []
    monkeypatch.setattr(wan_models, "device", lambda: gpu)
    whole = {"get_total_memory": 140 * gib, "get_free_memory": 130 * gib}
    for name, amount in whole.items():
        answer = lambda _=None, both=False, amount=amount: (amount, 3 * gib) if both else amount  # noqa: E731
        monkeypatch.setattr(comfy.model_management, name, answer)
    # 6 GiB are reserved by PyTorch, 1 GiB is the CUDA context.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (133 * gib, 140 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 6 * gib)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, _: fractions.append(fraction)
    )
    with wan_models.memory_cap(24):
        assert comfy.model_management.get_total_memory(gpu) == 24 * gib
        assert comfy.model_management.get_free_memory(gpu) == 14 * gib
        assert comfy.model_management.get_free_memory(torch.device("cpu")) == 130 * gib
    with wan_models.memory_cap(200):
        assert comfy.model_management.get_free_memory(gpu) == 130 * gib
    assert fractions == [pytest.approx(23 / 140), 1.0, 1.0]


def test_a_row_that_cannot_be_built_is_reported(subject, monkeypatch):
    def build(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(rows.ROWS, "window", build)
    assert [(one.row, one.failure) for one in run(subject, ["window"])] == [("window", "out of memory")]
