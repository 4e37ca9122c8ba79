"""Time of attention in temporal windows by clip length, next to ComfyUI's full attention.

One self-attention of the real shape (24 heads of 128 channels, as in TI2V-5B), in ComfyUI's own attention
on PyTorch's kernels; windows are averaged over an even and an odd block::

    python -m benchmarks.speed.temporal_windows --comfyui FOLDER [--device cuda] [--append]

Times are the fastest of several runs, in milliseconds per self-attention; on a CPU, the processor time of
one thread. `grows` is the exponent of the growth from half the length: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from benchmarks import command_line
from swifti2v_core.attention.temporal_windows import attend_in_windows, check_window_frames, plan_windows

HEADS, HEAD_CHANNELS = 24, 128
LENGTHS = (8, 16, 32, 64)


def host_attention(comfyui: Path) -> Callable[..., torch.Tensor]:
    """Return ComfyUI's attention on PyTorch's kernels."""
    command_line.boot(comfyui, cpu=not torch.cuda.is_available())
    from comfy.ldm.modules.attention import attention_pytorch

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention_pytorch(query, key, value, HEADS)

    return attend


def shortest(run: Callable[[], object], device: str, repeats: int) -> float:
    """Return the milliseconds of the fastest of ``repeats`` runs, after one warm-up."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(repeats + 1):
        begin = clock()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (clock() - begin))
    return min(times[1:])


def measure(
    attend: Callable[..., torch.Tensor], frames: int, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the milliseconds of full attention and of windows, the mean of an even and an odd block."""
    device, repeats = arguments.device, arguments.repeats
    shape = (1, frames * arguments.frame_tokens, HEADS * HEAD_CHANNELS)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    parts = [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]

    def windows() -> None:
        for block in (0, 1):
            plan = plan_windows(frames, arguments.window_frames, block)
            attend_in_windows(attend, *parts, plan, token_dim=1, output_dim=1)

    full = shortest(lambda: attend(*parts), device, repeats)
    return full, shortest(windows, device, repeats) / 2


def growth(times: list[float]) -> str:
    """Return the exponent of the growth over the last doubling of the length."""
    return f"{math.log2(times[-1] / times[-2]):.2f}" if len(times) > 1 else ""


def table(attend: Callable[..., torch.Tensor], arguments: argparse.Namespace) -> str:
    """Measure all lengths and return a Markdown table."""
    lines = [
        "| latent frames | tokens | full | grows | windows | grows | full / windows |",
        "|---|---|---|---|---|---|---|",
    ]
    full, windows = [], []
    for frames in LENGTHS:
        for times, found in zip((full, windows), measure(attend, frames, arguments), strict=True):
            times.append(found)
        lines.append(
            f"| {frames} | {frames * arguments.frame_tokens} | {full[-1]:.1f} ms | {growth(full)} "
            f"| {windows[-1]:.1f} ms | {growth(windows)} | {full[-1] / windows[-1]:.2f} |"
        )
    return "\n".join(lines)


def section(text: str, arguments: argparse.Namespace) -> str:
    """Return the table as a section of RESULTS.md."""
    on_gpu = arguments.device == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else f"one CPU thread ({platform.machine()})"
    return f"""## Temporal windows

`{command_line.shown_command()}`,
{date.today()}, {machine}, torch {torch.__version__}: one self-attention of {HEADS} heads of \
{HEAD_CHANNELS} channels,
{arguments.frame_tokens} tokens per latent frame, windows of {arguments.window_frames} latent frames \
next to ComfyUI's full attention.

{text}
"""


def main() -> None:
    """Measure all lengths and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command_line.add_comfyui(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--frame-tokens", type=int, default=32, help="tokens per latent frame (2560x1408: 3520)"
    )
    parser.add_argument("--window-frames", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    command_line.add_append(parser)
    arguments = parser.parse_args()
    check_window_frames(arguments.window_frames)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several threads would wait for each other on a busy machine
    with torch.inference_mode():
        text = section(table(host_attention(arguments.comfyui), arguments), arguments)
    command_line.print_and_append(text, arguments.append)


if __name__ == "__main__":
    main()
