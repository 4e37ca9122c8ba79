"""Time, memory, floors and the table of the speed benchmarks; pure PyTorch, without ComfyUI.

Method: one warm-up on a short clip, then the median of whole runs between two synchronizations; on a CPU
the fastest, since other programs only add time. Peaks of GPU memory are the allocator's; peaks of RAM are
the resident memory above the start of the case. A *floor* is the time that the arithmetic alone, or the
unavoidable memory traffic alone, takes on this device: floating-point operations counted on the meta
device and each byte moved once, divided by the rates of a large matrix product and a large copy measured in
the same run. A time far below its floor means that other load slowed those two measurements.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

GIB = 2**30
COMPARABLE_BYTES = 0.05 * GIB
"""Least memory of ComfyUI's own way of which a share is shown."""

COLUMNS = (
    "row",
    "case",
    "cap GiB",
    "seconds",
    "floor s (of)",
    "x floor",
    "VRAM GiB (reserved)",
    "RAM GiB",
    "error max / mean",
    "of host: time / VRAM / RAM",
)


@dataclass(frozen=True)
class Work:
    """Least cost of a result: floating-point operations, and bytes read and written once."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times)


@dataclass(frozen=True)
class Ceilings:
    """Rates of the device: floating-point operations per second, bytes read plus written per second."""

    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.flops / 1e12:.3g} TFLOP/s in a matrix product, {self.bytes / 1e9:.4g} GB/s in a copy"

    def best(self, other: Ceilings) -> Ceilings:
        """Return the higher of the two rates each."""
        return Ceilings(max(self.flops, other.flops), max(self.bytes, other.bytes))

    def floor(self, work: Work) -> tuple[float, str]:
        """Return the floor of ``work`` in seconds, the larger of its two terms, and that term as text."""
        arithmetic, traffic = work.flops / self.flops, work.bytes / self.bytes
        if arithmetic >= traffic:
            return arithmetic, f"{work.flops / 1e12:.4g} TFLOP"
        return traffic, f"{work.bytes / 1e9:.4g} GB"


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    row, name
        Operation, and implementation; names start with "ours" or "host", ComfyUI's own way.
    run
        Runs once and returns the result.
    warm_up
        Runs on a short clip.
    work
        Returns the least cost of a run; called after the last run.
    errors
        Returns the (maximum, mean) difference of a result from the reference, None without a reference.
    calls
        Operations per run; seconds are per operation.
    """

    row: str
    name: str
    run: Callable[[], Any]
    warm_up: Callable[[], Any]
    work: Callable[[], Work]
    errors: Callable[[Any], tuple[float, float] | None] | None = None
    calls: int = 1


@dataclass
class Measurement:
    """Result of a case: seconds, bytes and differences, or the reason for having none in ``failure``."""

    row: str
    name: str
    cap: float = 0.0
    seconds: list[float] = field(default_factory=list)
    work: Work = Work()
    allocated: float = 0.0
    reserved: float = 0.0
    ram: float = 0.0
    errors: tuple[float, float] | None = None
    failure: str = ""
    notes: list[str] = field(default_factory=list)
    fastest: bool = False

    @property
    def time(self) -> float:
        """Seconds: the median, or the fastest run on a CPU."""
        return min(self.seconds) if self.fastest else statistics.median(self.seconds)


def count_flops(run: Callable[[], Any]) -> float:
    """Count the operations of convolutions, matrix products and attention, 2 per multiply-add."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def module_bytes(module: torch.nn.Module, element_size: int) -> float:
    """Return the bytes of a module's weights at ``element_size`` bytes per value."""
    return float(sum(part.numel() for part in module.parameters()) * element_size)


def synchronize(device: torch.device) -> None:
    """Wait for the device to finish all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the wall-clock seconds and the result of a run."""
    synchronize(device)
    start = time.perf_counter()
    result = run()
    synchronize(device)
    return time.perf_counter() - start, result


def measure_ceilings(device: torch.device) -> Ceilings:
    """Time a large matrix product and a large copy on random data; zeros would be faster."""
    on_gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1536, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    values = (GIB if on_gpu else GIB // 16) // dtype.itemsize
    source = torch.randn(values, device=device, dtype=dtype)
    target = torch.empty_like(source)

    def median(run: Callable[[], Any]) -> float:
        times = [seconds_of(run, device)[0] for _ in range(13)]
        return statistics.median(times[3:])

    product = torch.empty_like(a)
    flops = 2 * side**3 / median(lambda: torch.matmul(a, b, out=product))
    return Ceilings(flops, 2 * values * dtype.itemsize / median(lambda: target.copy_(source)))


class Peaks:
    """Peak bytes inside the context: the GPU allocator's, and the process's sampled RAM above the start."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.allocated = self.reserved = self.ram = 0.0

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.ram = max(self.ram, self._process.memory_info().rss - self._start)

    def __enter__(self) -> Peaks:
        self._start = self._process.memory_info().rss
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._device.type == "cuda":
            self.allocated = torch.cuda.max_memory_allocated(self._device)
            self.reserved = torch.cuda.max_memory_reserved(self._device)


@contextlib.contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect log messages: every warning, and the pack's decode and encode plans."""
    notes: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().strip()
            plan = record.name == "SwiftI2V" and "ecode" in text
            if (plan or record.levelno >= logging.WARNING) and text not in notes:
                notes.append(text)

    listener, root, own = Listener(), logging.getLogger(), logging.getLogger("SwiftI2V")
    before = own.level, own.propagate
    own.setLevel(logging.INFO)
    own.propagate = False  # plans belong below the table, not between its lines
    for logger in (root, own):
        logger.addHandler(listener)
    try:
        yield notes
    finally:
        for logger in (root, own):
            logger.removeHandler(listener)
        own.setLevel(before[0])
        own.propagate = before[1]


def measure(
    case: Case, repeats: int, device: torch.device, deadline: float = float("inf"), cap: float = 0.0
) -> Measurement:
    """Run a case and record a failure in the measurement; after ``deadline`` run nothing."""
    found = Measurement(case.row, case.name, cap, fastest=device.type == "cpu")
    if time.monotonic() > deadline:
        found.failure = "not run: time is up"
        return found
    try:
        with torch.inference_mode():
            _run(case, repeats, device, deadline, found)
    except Exception as error:  # a failing row must not end the others
        found.failure = failure(error)
    # Not earlier: the exception keeps the memory of the failed run alive.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def failure(error: Exception) -> str:
    """Describe an error in a few words, for the table."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "out of memory"
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]


def _run(case: Case, repeats: int, device: torch.device, deadline: float, found: Measurement) -> None:
    case.warm_up()
    gc.collect()
    result, times = None, []
    with Peaks(device) as peaks:
        while not times or (len(times) < repeats and time.monotonic() < deadline):
            result = None  # otherwise two results are alive at once
            with captured_log() as found.notes:
                taken, result = seconds_of(case.run, device)
            times.append(taken / case.calls)
    found.allocated, found.reserved, found.ram = peaks.allocated, peaks.reserved, peaks.ram
    found.work = case.work()
    if case.errors is not None:
        found.errors = case.errors(result)
    found.seconds = times


def differences(result: torch.Tensor, reference: torch.Tensor | None) -> tuple[float, float] | None:
    """Return the maximum and mean absolute difference, slice by slice; None without a reference."""
    if reference is None:
        return None
    largest, total = 0.0, 0.0
    for part, expected in zip(result, reference, strict=True):  # whole clips would need two more copies
        difference = (part - expected).abs()
        largest = max(largest, float(difference.max()))
        total += float(difference.mean(dtype=torch.float64))
    return largest, total / len(result)


def _of_host(one: Measurement, measurements: Sequence[Measurement]) -> str:
    """Return time, VRAM and RAM as shares of the host case, the first of the same row and cap."""
    key = (one.row, one.cap)
    hosts = [m for m in measurements if m.name.startswith("host") and (m.row, m.cap) == key]
    if not hosts or not hosts[0].seconds or one is hosts[0]:
        return "-"
    host = hosts[0]
    shares = [f"{one.time / host.time:.2f}"]
    for ours, theirs in ((one.allocated, host.allocated), (one.ram, host.ram)):
        shares.append(f"{ours / theirs:.2f}" if theirs > COMPARABLE_BYTES else "-")
    return " / ".join(shares)


def _cells(one: Measurement, ceilings: Ceilings, measurements: Sequence[Measurement]) -> list[str]:
    cells = [one.row, one.name, f"{one.cap:g}" if one.cap else "none"]
    if one.failure:
        return [*cells, one.failure, *["-"] * (len(COLUMNS) - 4)]
    floor, term = ceilings.floor(one.work)
    spread = f"{one.time:.3g}" + (
        f" ({min(one.seconds):.3g}-{max(one.seconds):.3g})" if len(one.seconds) > 1 else ""
    )
    return [
        *cells,
        spread,
        f"{floor:.3g} ({term})",
        f"{one.time / floor:.2f}" if floor else "-",
        f"{one.allocated / GIB:.1f} ({one.reserved / GIB:.1f})" if one.allocated else "-",
        f"{one.ram / GIB:.2f}",
        f"{one.errors[0]:.1e} / {one.errors[1]:.1e}" if one.errors else "-",
        _of_host(one, measurements),
    ]


def table(measurements: Sequence[Measurement], ceilings: Ceilings) -> str:
    """Return the table in Markdown, followed by the captured log."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [_cells(one, ceilings, measurements) for one in measurements]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [
        f"- {one.row}, {one.name}{f', {one.cap:g} GiB' if one.cap else ''}: {note}"
        for one in measurements
        for note in one.notes
    ]
    return "\n".join([text, *([""] if notes else []), *notes])
