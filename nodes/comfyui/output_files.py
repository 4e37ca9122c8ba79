"""ComfyUI's output folder: new file names, saved segments, and the workflow inside files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy.cli_args import args
from folder_paths import get_output_directory, get_save_image_path


def output_folder() -> Path:
    """Return the absolute path of the folder that ComfyUI saves to."""
    return Path(get_output_directory()).absolute()


def saved_segments_folder() -> Path:
    """Return the folder of all saved segments; ComfyUI empties its temporary folder at every start."""
    return output_folder() / "swifti2v_checkpoints"


def new_output_file(prefix: str, extension: str, width: int, height: int) -> tuple[Path, str]:
    """Return (full path, subfolder) of a new file in ComfyUI's output folder.

    ComfyUI refuses prefixes that leave the output folder.
    """
    folder, name, counter, subfolder, _ = get_save_image_path(prefix, str(output_folder()), width, height)
    return Path(folder) / f"{name}_{counter:05}_.{extension}", subfolder


def workflow_metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """Return the tags that let ComfyUI restore the graph from a file; empty if the user disabled them."""
    if args.disable_metadata:
        return {}
    tags = {name: json.dumps(value) for name, value in (extra or {}).items()}
    return tags if prompt is None else {"prompt": json.dumps(prompt), **tags}
