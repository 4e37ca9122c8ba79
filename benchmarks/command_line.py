"""Command line, ComfyUI in this process, and report of the benchmarks.

Every program here is a module, run from the root of the repository::

    python -m benchmarks.speed.two_k --comfyui FOLDER --append

Its folder comes first on the import path until `boot` puts ComfyUI's before it, so import ComfyUI's modules
(its ``nodes`` above all, which has the name of a folder here) only after `boot`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.speed.measure import Ceilings, Measurement, measure_ceilings, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"


def boot(comfyui: Path, cpu: bool) -> None:
    """Put a ComfyUI folder first on the path and let it parse an empty command line."""
    sys.path.insert(0, str(comfyui))
    arguments, sys.argv = sys.argv, ["main.py", *(["--cpu"] if cpu else [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args
    import comfy.utils

    sys.argv = arguments
    comfy.utils.set_progress_bar_enabled(False)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that the speed benchmarks share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_comfyui(made)
    made.add_argument("--repeats", type=int, default=3, help="runs per case, after one warm-up")
    made.add_argument("--width-divisor", type=int, default=1, help="narrower models, for a smoke run")
    made.add_argument("--only", default="", help="only cases whose name contains this text")
    add_append(made)
    return made


def add_comfyui(parser: argparse.ArgumentParser) -> None:
    """Add ``--comfyui``, which defaults to the environment variable COMFYUI_PATH."""
    folder = os.environ.get("COMFYUI_PATH")
    parser.add_argument(
        "--comfyui",
        type=Path,
        default=folder,
        required=not folder,
        metavar="FOLDER",
        help="folder of a ComfyUI; default COMFYUI_PATH",
    )


def add_append(parser: argparse.ArgumentParser) -> None:
    """Add ``--append``."""
    parser.add_argument("--append", action="store_true", help="append the table to benchmarks/RESULTS.md")


def pixel_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT."""
    width, height = map(int, text.split("x"))
    return width, height


def comfyui_version(comfyui: Path) -> str:
    """Return the version of a ComfyUI folder; a stripped one may lack it."""
    file = comfyui / "comfyui_version.py"
    return file.read_text(encoding="utf-8").split('"')[-2] if file.is_file() else "of unknown version"


def print_each(found: Iterable[Measurement], ceilings: Ceilings) -> list[Measurement]:
    """Print every measurement as it arrives, so that an interrupted run loses none."""
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
    """Print the table under a heading with command, machine and versions; append it if asked."""
    on_gpu = device.type == "cuda"
    ceilings = ceilings.best(measure_ceilings(device))
    machine = torch.cuda.get_device_name(device) if on_gpu else f"{torch.get_num_threads()} CPU threads"
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if on_gpu else ""
    text = "\n".join(
        [
            f"## {title}, {machine}, {time.strftime('%Y-%m-%d')}",
            "",
            f"`{shown_command()}`",
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
    print_and_append(text, options.append)


def print_and_append(text: str, append: bool) -> None:
    """Print a section of RESULTS.md; append it there if asked."""
    print(f"\n{text}")
    if append:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


def shown_command() -> str:
    """Return the command line of this process without folders of this machine."""
    module = ".".join(Path(sys.argv[0]).with_suffix("").parts[-3:])
    words = sys.argv[1:]
    hidden = {i for i, word in enumerate(words) if word == "--comfyui" or words[i - 1 : i] == ["--comfyui"]}
    shown = [word for i, word in enumerate(words) if i not in hidden and not word.startswith("--comfyui=")]
    return " ".join(["python", "-m", module, *shown])
