"""File names: inside their folder, and writable on this system."""

from __future__ import annotations

import os
import re
import sys

from ...swifti2v_core.resume.saved_segments import RESERVED_NAME
from ...swifti2v_core.text import shortened
from ..comfyui.output_files import output_folder

LONGEST_PART_BYTES = 200
"""Bytes of a part of a path; most file systems take 255, and a number and an ending are added."""

LONGEST_PREFIX_BYTES = 1000
"""Bytes of all parts together."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that no file name should hold."""

WINDOWS = re.compile(r'[<>:"|?*]')
"""Characters that Windows keeps for itself."""


def check_filename_prefix(prefix: str) -> None:
    """Raise ValueError if a prefix names no file that can be written inside ComfyUI's output folder.

    ComfyUI refuses only when it saves, after minutes of work.
    """
    if not os.path.basename(prefix):
        raise _refusal(prefix, "names no file", f"{prefix}SwiftI2V")
    _check_characters(prefix)
    _check_length(prefix)
    output = os.path.realpath(output_folder())
    target = os.path.realpath(os.path.join(output, prefix))  # links followed, as writing does
    if not target.startswith(os.path.join(output, "")):
        raise _refusal(prefix, "leaves ComfyUI's output folder", os.path.basename(target))
    _check_folder(prefix, os.path.dirname(target))


def check_plain_prefix(prefix: str) -> None:
    """Raise ValueError as `check_filename_prefix` does, unless placeholders are still to be filled in."""
    if "%" not in prefix:
        check_filename_prefix(prefix)


def _refusal(prefix: str, why: str, nearest: str) -> ValueError:
    return ValueError(
        f'filename_prefix is "{shortened(prefix)}", which {why}; '
        f'the nearest valid value is "{shortened(nearest)}".'
    )


def _check_characters(prefix: str) -> None:
    written = prefix.encode(errors="replace").decode()  # half a surrogate pair is no character
    plain = CONTROL.sub("_", written)
    if plain != prefix:
        raise _refusal(prefix, "holds characters that no file name may have", plain)
    if sys.platform == "win32":
        parts = re.split(r"([/\\])", WINDOWS.sub("_", prefix))
        allowed = "".join(f"_{part}" if RESERVED_NAME.fullmatch(part) else part for part in parts)
        if allowed != prefix:
            raise _refusal(prefix, "holds a character or name that Windows keeps for itself", allowed)


def _check_length(prefix: str) -> None:
    parts = re.split(r"[/\\]", prefix)
    if (
        max(len(part.encode()) for part in parts) > LONGEST_PART_BYTES
        or len(prefix.encode()) > LONGEST_PREFIX_BYTES
    ):
        raise ValueError(
            f'filename_prefix is "{shortened(prefix)}", {len(prefix)} characters, but its parts may have '
            f"{LONGEST_PART_BYTES} bytes each and {LONGEST_PREFIX_BYTES} together; shorten it."
        )


def _check_folder(prefix: str, folder: str) -> None:
    """Raise ValueError unless a folder can be made and written to."""
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise _refusal(
            prefix, f"has a file where a folder must be ({os.path.basename(folder)})", "SwiftI2V"
        )
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f'filename_prefix is "{shortened(prefix)}", but its folder is not writable; choose another one.'
        )
