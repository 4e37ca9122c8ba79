"""Coverage-guided fuzzing of all targets in turn: ``python tests/fuzz/run.py --minutes 10``.

Prints the number of cases per target and fails at the first input that breaks one. Atheris, which
guides by coverage, lacks wheels for some platforms; without it, the run prints so and does nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = (
    "timesteps",
    "keyframe_times",
    "prompt_ranges",
    "checkpoint_name",
    "checkpoint_metadata",
    "checkpoint_file",
)
MIN_INPUT_BYTES = 2
MAX_INPUT_BYTES = 4096
"""Limits of an input."""


def fuzz_one(name: str, limit: str, corpus: Path) -> None:
    """Fuzz one target in this process; libFuzzer exits it at the end."""
    import atheris

    with atheris.instrument_imports(include=["swifti2v_core"]):
        sys.path.insert(0, str(HERE))
        import targets
    logging.disable()  # this process only: ignored files are logged
    target = getattr(targets, name)
    for number, seed in enumerate(targets.TARGETS[target]):
        (corpus / f"seed_{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        if len(data) >= MIN_INPUT_BYTES:
            target(data)

    options = [f"-max_len={MAX_INPUT_BYTES}", "-timeout=20", "-print_final_stats=1", "-seed=1"]
    atheris.Setup([sys.argv[0], str(corpus), limit, *options], one)
    atheris.Fuzz()


def count_cases(name: str, limit: str) -> int:
    """Fuzz one target in a separate process and return the number of cases; raise if one breaks it.

    Parameters
    ----------
    name
        One of `NAMES`.
    limit
        Limit for libFuzzer, ``-runs=`` or ``-max_total_time=`` with a number.
    """
    with tempfile.TemporaryDirectory() as corpus:
        command = [sys.executable, __file__, "--target", name, f"--limit={limit}", "--corpus", corpus]
        inside = {"cwd": corpus, "env": {**os.environ, "TMPDIR": corpus}}  # leftovers are deleted with it
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, **inside
        )
    executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", run.stderr)
    if run.returncode or not executed:
        raise AssertionError(f"{name} breaks:\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}")
    return int(executed[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--target", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--limit", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("Nothing fuzzed: atheris is not installed; it has wheels for CPython 3.11 to 3.13 on Linux.")
    elif options.target:
        fuzz_one(options.target, options.limit, options.corpus)
    else:
        limit = f"-max_total_time={max(1, round(60 * options.minutes / len(NAMES)))}"
        for name in NAMES:
            print(f"{name:20} {count_cases(name, limit):>10} cases", flush=True)


if __name__ == "__main__":
    main()
