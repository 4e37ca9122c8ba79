"""ComfyUI's output folder: new file names, saved segments, and the workflow inside files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


def part_of(path: Path) -> Path:
    """Return the name that a file has until it is complete."""
    return Path(f"{path}.part")


@contextmanager
def reserved_output_file(
    prefix: str, extension: str, width: int, height: int
) -> Iterator[tuple[Path, str]]:
    """Reserve the name of a new file in ComfyUI's output folder while it is made.

    The reservation is the file of `part_of`. ComfyUI counts it, and so does every other process that asks
    here, on the same folder of another server too; what is left of it at the end is deleted.

    Yields
    ------
    tuple
        Full path, of which no file exists yet, and subfolder.

    Raises
    ------
    Exception
        ComfyUI's, if the prefix leaves the output folder.
    """
    folder, name, counter, subfolder, _ = get_save_image_path(prefix, str(output_folder()), width, height)
    while not _reserve(path := Path(folder) / f"{name}_{counter:05}_.{extension}"):
        counter += 1
    try:
        yield path, subfolder
    finally:
        part_of(path).unlink(missing_ok=True)


def _reserve(path: Path) -> bool:
    """Create the file of `part_of` unless it or the file itself exists; return whether it was created."""
    try:
        os.close(os.open(part_of(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    # Looked for now: until then, a process that had the name before could complete the file.
    if path.exists():
        part_of(path).unlink()
        return False
    return True


def workflow_metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """Return the tags that let ComfyUI restore the graph from a file; empty if the user disabled them."""
    if args.disable_metadata:
        return {}
    tags = {name: json.dumps(value) for name, value in (extra or {}).items()}
    return tags if prompt is None else {"prompt": json.dumps(prompt), **tags}
