"""How attention inside temporal windows grows with the length of a clip, beside ComfyUI's full attention.

One self-attention of the real shape (24 heads of 128 channels, as in TI2V-5B), in ComfyUI's own attention
on PyTorch's kernels; the windows are those of an even and of an odd block, half and half::

    python benchmarks/bench_temporal_windows.py --comfyui FOLDER [--device cuda] [--append]

Times are the shortest of some runs, in milliseconds per self-attention; on a processor it is the time that
one thread spent computing, whatever else runs. `grows` is the exponent of the growth from half the length:
1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from swifti2v_core.attention.temporal_windows import attend_in_windows, check_window_frames, plan_windows  # noqa: E402

HEADS, HEAD_CHANNELS = 24, 128
LENGTHS = (8, 16, 32, 64)
RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def host_attention(comfyui: Path) -> Callable[..., torch.Tensor]:
    """Return ComfyUI's attention on PyTorch's kernels, as it computes on this machine."""
    sys.path.insert(0, str(comfyui))
    sys.argv = ["main.py", *([] if torch.cuda.is_available() else ["--cpu"])]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.ldm.modules.attention import attention_pytorch

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention_pytorch(query, key, value, HEADS)

    return attend


def shortest(run: Callable[[], object], device: str, repeats: int) -> float:
    """Return the shortest of some runs in milliseconds, after one that is not counted."""
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
    """Return the time of full attention and of windows, the mean of an even and of an odd block."""
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
    """Return the exponent of the growth in the last doubling of the length."""
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
    machine = (
        torch.cuda.get_device_name() if on_gpu else f"one thread of a processor ({platform.machine()})"
    )
    return f"""
## Temporal windows

`python benchmarks/bench_temporal_windows.py --comfyui FOLDER --frame-tokens {arguments.frame_tokens} \
--window-frames {arguments.window_frames} --device {arguments.device}`,
{date.today()}, {machine}, torch {torch.__version__}: one self-attention of {HEADS} heads of \
{HEAD_CHANNELS} channels,
{arguments.frame_tokens} tokens a latent frame, windows of {arguments.window_frames} latent frames beside \
ComfyUI's full attention.

{text}
"""


def main() -> None:
    """Print the table, and append it to RESULTS.md if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--frame-tokens", type=int, default=32, help="tokens of a latent frame (2560x1408: 3520)"
    )
    parser.add_argument("--window-frames", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="also append a section to RESULTS.md")
    arguments = parser.parse_args()
    check_window_frames(arguments.window_frames)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several would wait for each other on a busy machine
    with torch.inference_mode():
        text = section(table(host_attention(arguments.comfyui), arguments), arguments)
    print(text)
    if arguments.append:
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(text)


if __name__ == "__main__":
    main()
