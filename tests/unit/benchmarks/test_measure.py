"""Measurements of the speed benchmarks: floors counted on the meta device, failures as rows, the table."""

import sys
from argparse import Namespace

import pytest
import torch
from torch import nn

from benchmarks import command_line
from benchmarks.speed import measure as bench

CPU = torch.device("cpu")
CEILINGS = bench.Ceilings(flops=1e12, bytes=1e11)


def meta(*shape):
    return torch.empty(*shape, device="meta")


def case(run, **options):
    return bench.Case("row", "ours", run, lambda: None, lambda: bench.Work(2e12, 1e9), **options)


def found(name, seconds, **options):
    return bench.Measurement("row", name, seconds=seconds, work=bench.Work(2e12, 1e9), **options)


def test_convolutions_products_and_attention_are_counted():
    with torch.device("meta"):
        convolution, linear = nn.Conv3d(5, 7, (3, 3, 3)), nn.Linear(11, 13)
    assert bench.count_flops(lambda: convolution(meta(1, 5, 4, 6, 8))) == 2 * 7 * (2 * 4 * 6) * 5 * 27
    assert bench.count_flops(lambda: linear(meta(3, 11))) == 2 * 3 * 11 * 13
    q = meta(1, 2, 10, 16)
    attention = bench.count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * 2 * (2 * 10 * 10 * 16)
    assert bench.module_bytes(linear, 2) == 2 * (11 * 13 + 13)


def test_the_floor_is_the_larger_term_and_says_which():
    assert CEILINGS.floor(bench.Work(2e12, 1e9)) == (2.0, "2 TFLOP")
    assert CEILINGS.floor(bench.Work(1e9, 3e11)) == (3.0, "300 GB")
    total = bench.Work(1, 2) + bench.Work(3, 4) * 2
    assert (total.flops, total.bytes) == (7, 10)


def test_ceilings_are_measured():
    ceilings = bench.measure_ceilings(CPU)
    assert ceilings.flops > 1e8 and ceilings.bytes > 1e7


def test_a_case_is_warmed_up_repeated_and_compared():
    calls = []

    def run():
        calls.append(torch.is_inference_mode_enabled())
        return torch.ones(2, 3)

    errors = lambda result: bench.differences(result, torch.zeros(2, 3))  # noqa: E731
    one = bench.measure(case(run, errors=errors, calls=2), 3, CPU)
    assert calls == [True] * 3 and len(one.seconds) == 3 and one.time > 0
    assert one.errors == (1.0, 1.0) and not one.failure
    assert bench.measure(case(run), 3, CPU, deadline=0).failure == "not run: time is up"


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA"), "out of memory"), (ValueError("no\nmore"), "ValueError: no")],
)
def test_what_fails_is_a_row(error, said):
    def run():
        raise error

    one = bench.measure(case(run), 3, CPU)
    assert one.failure == said and not one.seconds
    assert bench.table([one], CEILINGS).splitlines()[2].startswith(f"| row | ours | none | {said} | - |")


def test_memory_peaks_are_seen():
    with bench.Peaks(CPU) as peaks:
        held = torch.ones(2**26)
        seconds, _ = bench.seconds_of(lambda: held.mul_(2).sum() + torch.ones(2**24).sum(), CPU)
    assert seconds > 0 and peaks.ram > 0.9 * held.nbytes


def test_differences_are_taken_slice_by_slice():
    a = torch.arange(12.0).reshape(3, 4)
    assert bench.differences(a, a) == (0.0, 0.0)
    assert bench.differences(a, a + torch.tensor([[0.0], [0.0], [3.0]])) == (3.0, 1.0)
    assert bench.differences(a, None) is None


def test_the_table_compares_with_the_host_under_the_same_cap():
    gib = bench.GIB
    rows = [
        found("host", [4.0, 5.0, 6.0], allocated=10 * gib, reserved=12 * gib, ram=2 * gib),
        found("ours", [2.5], allocated=5 * gib, reserved=6 * gib, ram=gib, errors=(1e-3, 2e-5)),
        found("ours", [2.0], cap=24, notes=["Decode: 4 strips"]),
    ]
    lines = bench.table(rows, CEILINGS).splitlines()
    assert lines[2] == "| row | host | none | 5 (4-6) | 2 (2 TFLOP) | 2.50 | 10.0 (12.0) | 2.00 | - | - |"
    assert lines[3].endswith(
        "| 2.5 | 2 (2 TFLOP) | 1.25 | 5.0 (6.0) | 1.00 | 1.0e-03 / 2.0e-05 | 0.50 / 0.50 / 0.50 |"
    )
    assert lines[4].endswith("| - | 0.00 | - | - |")  # no host under that cap
    assert lines[-1] == "- row, ours, 24 GiB: Decode: 4 strips"
    assert len({line.count(" | ") for line in lines[:5]}) == 1


def test_the_report_is_appended_without_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(
        sys, "argv", ["/secret/benchmarks/speed/two_k.py", "--comfyui", "/secret", "--rows", "decode"]
    )
    options = Namespace(comfyui=tmp_path, append=True)
    command_line.report("2K", [found("host", [1.0])], CEILINGS, options, CPU)
    written = (tmp_path / "RESULTS.md").read_text()
    assert "`python -m benchmarks.speed.two_k --rows decode`" in written and "| row | host |" in written
    assert written.strip() == capsys.readouterr().out.strip() and "secret" not in written
