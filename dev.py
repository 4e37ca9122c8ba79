"""The developer's command: it sets everything up and runs it.

    python3 dev.py demo     a photo becomes a moving clip in a real ComfyUI
    python3 dev.py test     lint, types and the test suites
    python3 dev.py host     the folder of that ComfyUI and its Python, for other tools

This file and what it imports need Python 3.10 or newer and nothing else, because they make the environment
that has the rest. Users of the node pack do not get them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from devtools.comfyui_download import VERSIONS
from devtools.environment import find_host
from devtools.programs import become, module_command
from devtools.suites import SUITES, run_tests
from devtools.terminal import DevError, exit_code
from devtools.workspace import DEMOS


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="dev.py", description="Develop SwiftI2V for ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="turn a photo into a clip in a real ComfyUI")
    demo.add_argument("--image", type=Path, metavar="PHOTO", help="your photo instead of the demo's")
    demo.add_argument("--motion", choices=sorted(DEMOS), default="camera", help="kind of Stage I")
    demo.add_argument("--serve", action="store_true", help="keep the web page open afterwards")
    test = commands.add_parser("test", help="run lint, types and the test suites")
    test.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    test.add_argument("-k", dest="expression", metavar="EXPR", help="only tests that match")
    host = commands.add_parser("host", help="print ComfyUI's folder and its Python")
    for command in (test, host):
        command.add_argument(
            "--comfyui",
            metavar="FOLDER_OR_VERSION",
            help=f"the folder of a ComfyUI, or one of the versions {', '.join(sorted(VERSIONS))}",
        )
    arguments = parser.parse_args(argv)
    for suite in getattr(arguments, "suites", ()):
        if suite not in SUITES:
            parser.error(f"there is no suite {suite!r}; the suites are {', '.join(SUITES)}")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    if sys.version_info < (3, 10):  # noqa: UP036 - no installer has checked it
        raise DevError("Python 3.10 or newer is needed.")
    if arguments.command == "test":
        return run_tests(arguments.suites, arguments.expression, arguments.comfyui)
    if arguments.command == "demo":
        return run_demo(arguments.image, arguments.motion, arguments.serve)
    host = find_host(arguments.comfyui)
    print(host.folder, host.python, sep="\n")
    return 0


def run_demo(image: Path | None, motion: str, serve: bool) -> int:
    """Continue as `devtools.demo` in ComfyUI's Python, which has aiohttp."""
    if image is not None and not image.is_file():
        raise DevError(f"The photo {image} is not a file.")
    command = [*module_command(find_host().python, "devtools.demo"), "--motion", motion]
    if image is not None:
        command += ["--image", image]
    if serve:
        command += ["--serve"]
    return become(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = parse_arguments(argv)
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
