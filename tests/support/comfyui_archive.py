"""An archive like the package that carries ComfyUI."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def add_file(tar: tarfile.TarFile, name: str, text: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    tar.addfile(member, io.BytesIO(text.encode()))


def make_archive(path: Path) -> Path:
    """Write an archive like the package's: a small ComfyUI below vendor/, and other things."""
    with tarfile.open(path, "w:gz") as tar:
        add_file(tar, "pkg-1/other/vendor/ComfyUI/x.py", "not wanted either")
        add_file(tar, "pkg-1/vendor/ComfyUI/main.py", "print('main')")
        add_file(tar, "pkg-1/vendor/ComfyUI/comfyui_version.py", '__version__ = "0.30.0"\n')
        add_file(tar, "pkg-1/vendor/ComfyUI/comfy/sd.py")
    return path
