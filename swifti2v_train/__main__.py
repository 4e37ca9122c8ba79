"""``python -m swifti2v_train COMMAND --config FILE``.

    prepare      photos and videos to a dataset of latents
    autoencoder  train the tiny autoencoder
    stage1       train the motion model
    stage2       train the detail model
    export       the newest checkpoint of a run to files for ComfyUI
    evaluate     measure exported weights
    all          all of these in order, from photos to measured weights (the tiny models)

Run a command again to continue a training that was paused or interrupted. To train with several processes,
run ``accelerate launch -m swifti2v_train COMMAND --config FILE``.

Exit code: 0 finished, 3 paused (run again to continue), 1 failed.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from .config import load_config

logger = logging.getLogger("SwiftI2V")

TRAININGS = ("autoencoder", "stage1", "stage2")
MODULES = {"prepare": "data.prepare", "export": "export", "evaluate": "evaluation.evaluate"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 finished, 3 paused (run again to continue), 1 failed."""
    parser = argparse.ArgumentParser(
        prog="python -m swifti2v_train",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("command", choices=[*TRAININGS, *MODULES, "all"])
    parser.add_argument("--config", required=True, help="YAML file; see the recipes folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.SETTING=VALUE",
        help="replace a setting of the file",
    )
    parser.add_argument("--estimate", action="store_true", help="only print what a training needs")
    parser.add_argument("--processes", type=int, help="with --estimate: number of processes")
    parser.add_argument("--fsdp", action="store_true", help="with --estimate: shard weights with FSDP")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run_all(options) if options.command == "all" else _run(options)
    except (ValueError, FloatingPointError, FileNotFoundError) as error:
        logger.error("Error: %s", error)
        return 1


def _run_all(options: argparse.Namespace) -> int:
    """Run the whole pipeline until a command is paused or fails; finished ones return at once."""
    from .commands import pipeline

    given = options.set
    for command, changes in pipeline(load_config(options.config, given)):
        logger.info("== %s %s", command, " ".join(f"{name}={value}" for name, value in changes.items()))
        options.command, options.set = command, [*given, *(f"{k}={v}" for k, v in changes.items())]
        code = _run(options)
        if code:
            return code
    return 0


def _run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.set)
    if options.command in MODULES:
        importlib.import_module(f"{__package__}.{MODULES[options.command]}").run(config)
        return 0
    from accelerate.utils import parse_flag_from_env

    from . import commands
    from .loop.trainer import process_state

    state = process_state()
    processes = options.processes or state.num_processes
    sharded = options.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    estimate = commands.estimate(config, options.command, processes, sharded=sharded)
    if estimate is not None and state.is_main_process:
        logger.info(estimate.text())
    if options.estimate:
        return 0
    outcome = getattr(commands, options.command)(config)
    if state.is_main_process:
        steps = getattr(config, options.command).steps
        result = "Finished" if outcome.finished else "Paused: run the command again to continue"
        logger.info("Step %d of %d. %s.", outcome.step, steps, result)
    return 0 if outcome.finished else 3


if __name__ == "__main__":
    sys.exit(main())
