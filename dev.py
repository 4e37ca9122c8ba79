"""SwiftI2V for ComfyUI, for developers: one file that sets everything up and runs it.

    python3 dev.py demo     a photo becomes a moving clip in a real ComfyUI
    python3 dev.py test     lint, types and the test suites
    python3 dev.py host     the folder of that ComfyUI and its Python, for other tools

Standard library only, Python 3.10 or newer. Nothing here is shipped to users of the node pack.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from devtools.comfyui_download import HOSTS
from devtools.demo import DEMOS, demo
from devtools.environment import find_host
from devtools.suites import SUITES, run_tests
from devtools.terminal import DevError


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="dev.py", description="SwiftI2V for ComfyUI: developing.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="turn a photo into a clip in a real ComfyUI")
    run.add_argument("--image", type=Path, metavar="PHOTO", help="your photo instead of the demo's")
    run.add_argument("--motion", choices=sorted(DEMOS), default="camera", help="kind of Stage I")
    run.add_argument("--serve", action="store_true", help="keep the web page open afterwards")
    test = commands.add_parser("test", help="run lint, types and the test suites")
    test.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    test.add_argument("-k", dest="expression", metavar="EXPR", help="only tests that match")
    host = commands.add_parser("host", help="print ComfyUI's folder and its Python")
    for command in (test, host):
        command.add_argument("--comfyui", choices=sorted(HOSTS), help="ComfyUI version")
    arguments = parser.parse_args(argv)
    for suite in getattr(arguments, "suites", ()):
        if suite not in SUITES:
            parser.error(f"there is no suite {suite!r}; the suites are {', '.join(SUITES)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks; errors become one sentence on stderr."""
    arguments = parse_arguments(argv)
    # SIGTERM must unwind like Ctrl-C does, or a server would be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - this runs before any packaging could tell
            raise DevError("Python 3.10 or newer is needed.")
        if arguments.command == "test":
            return run_tests(arguments.suites, arguments.expression, arguments.comfyui)
        if arguments.command == "demo":
            demo(arguments.image, arguments.motion, arguments.serve)
        else:
            host = find_host(arguments.comfyui)
            print(host.folder, host.python, sep="\n")
        return 0
    except KeyboardInterrupt:
        return 130
    except (DevError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
