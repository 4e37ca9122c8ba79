"""Names of files."""

from __future__ import annotations

import os

from .. import host


def filename_prefix(prefix: str) -> None:
    """Raise ValueError if a prefix names no file inside ComfyUI's output folder.

    ComfyUI says so only on saving, after minutes of work.
    """
    if not os.path.basename(prefix):
        raise ValueError(
            f'filename_prefix is "{prefix}", which names no file; '
            f'the nearest valid value is "{prefix}SwiftI2V".'
        )
    output = host.output_folder()
    target = os.path.abspath(os.path.join(output, prefix))
    if not target.startswith(os.path.join(output, "")):
        raise ValueError(
            f'filename_prefix is "{prefix}", which leaves ComfyUI\'s output folder; '
            f'the nearest valid value is "{os.path.basename(target)}".'
        )
