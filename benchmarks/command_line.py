"""What the benchmarks share on the command line: starting ComfyUI in process, and the report."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from measure import Ceilings, Measurement, measure_ceilings, table

RESULTS = Path(__file__).with_name("RESULTS.md")


def boot(comfyui: Path, cpu: bool) -> None:
    """Put a ComfyUI folder on the path and let it read its own command line, which is empty."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", *(["--cpu"] if cpu else [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import comfy.utils

    sys.argv = arguments
    comfy.utils.set_progress_bar_enabled(False)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that both benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("COMFYUI_PATH")
    made.add_argument(
        "--comfyui", type=Path, default=folder, required=not folder, help="folder; else COMFYUI_PATH"
    )
    made.add_argument("--repeats", type=int, default=3, help="runs per case, after one warm-up")
    made.add_argument("--width-divisor", type=int, default=1, help="narrower models, for a smoke run")
    made.add_argument("--only", default="", help="only cases whose name holds this text")
    made.add_argument("--append", action="store_true", help="append the table to benchmarks/RESULTS.md")
    return made


def pixel_size(text: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT."""
    width, height = map(int, text.split("x"))
    return width, height


def comfyui_version(comfyui: Path) -> str:
    """Return the version of a ComfyUI folder, which a stripped one may not tell."""
    file = comfyui / "comfyui_version.py"
    return file.read_text(encoding="utf-8").split('"')[-2] if file.is_file() else "of unknown version"


def print_each(found: Iterable[Measurement], ceilings: Ceilings) -> list[Measurement]:
    """Print every measurement when it comes, so that a run that is ended tells what it has."""
    begin, measurements = time.monotonic(), []
    for one in found:
        measurements.append(one)
        line = table([one], ceilings).splitlines()[2]
        print(f"{time.monotonic() - begin:5.0f} s {line}", flush=True)
    return measurements


def report(
    title: str,
    measurements: Sequence[Measurement],
    ceilings: Ceilings,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Print the table under a heading that says where it comes from; append it if asked."""
    on_gpu = device.type == "cuda"
    ceilings = ceilings.best(measure_ceilings(device))
    machine = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} CPU threads"
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if on_gpu else ""
    text = "\n".join(
        [
            f"## {title}, {machine}, {time.strftime('%Y-%m-%d')}",
            "",
            f"`{' '.join(['python', *_shown_arguments()])}`",
            "",
            f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}{cudnn}, Python "
            f"{platform.python_version()}; random weights. Ceilings of this run: {ceilings}. Seconds are "
            f"{'medians' if on_gpu else 'of the fastest run'} (and the range); memory is the peak, in RAM "
            "above the start of the case.",
            "",
            table(measurements, ceilings),
            "",
        ]
    )
    print(f"\n{text}")
    if options.append:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


def _shown_arguments() -> list[str]:
    """Return the command line without folders of this machine."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    hidden = {i for i, word in enumerate(words) if word == "--comfyui" or words[i - 1] == "--comfyui"}
    return [word for i, word in enumerate(words) if i not in hidden and not word.startswith("--comfyui=")]
