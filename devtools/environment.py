"""The Python environment and the ComfyUI that the commands use."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from devtools import paths
from devtools.comfyui_download import DEFAULT_VERSION, VERSIONS, fetch_comfyui
from devtools.programs import WINDOWS, check_disk, pip, run_logged
from devtools.terminal import DevError

# One matching set: a newer torch has no matching torchaudio, and ComfyUI then fails at import.
PINS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "kornia")
VENV_GB = 9.0


def venv_python(venv: Path) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def ensure_venv() -> Path:
    """Make the environment, or update it when the requirements changed; return its Python."""
    requirements = [paths.REPO / "requirements.txt", paths.REPO / "tests" / "requirements.txt"]
    parts = [
        VERSIONS[DEFAULT_VERSION][1],
        *PINS,
        *(path.read_text(encoding="utf-8") for path in requirements),
    ]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    python, marker = venv_python(paths.VENV), paths.VENV / "swifti2v.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return python
    made_now = not python.exists()
    try:
        if made_now:
            check_disk(paths.VENV, VENV_GB, "The Python environment")
            run_logged([sys.executable, "-m", "venv", "--clear", paths.VENV], "making .venv")
        requirements.append(fetch_comfyui(DEFAULT_VERSION, python) / "requirements.txt")
        files = [word for path in requirements for word in ("-r", path)]
        run_logged([*pip(python), "install", *PINS, *files], "installing packages")
    except BaseException:
        if made_now:
            shutil.rmtree(paths.VENV, ignore_errors=True)
        raise
    marker.write_text(key, encoding="utf-8")
    return python


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it."""

    folder: Path
    python: Path
    version: str


def find_host(comfyui: str | None = None) -> Host:
    """Return the ComfyUI to use; download it if needed.

    Parameters
    ----------
    comfyui
        A version in `VERSIONS` or a folder; by default the folder that COMFYUI_PATH names, else
        `DEFAULT_VERSION`.

    Raises
    ------
    DevError
        The folder holds no ComfyUI.
    """
    own = os.environ.get("COMFYUI_PATH")
    if comfyui in VERSIONS or not (comfyui or own):
        python = ensure_venv()
        folder = fetch_comfyui(comfyui or DEFAULT_VERSION, python)
    else:
        folder = Path(comfyui or str(own)).absolute()
        if not (folder / "comfyui_version.py").is_file():
            raise DevError(
                f"--comfyui is {comfyui}, which is neither a folder with comfyui_version.py nor one of the "
                f"versions {', '.join(sorted(VERSIONS))}."
                if comfyui
                else f"COMFYUI_PATH is {own}, which is no ComfyUI: it has no comfyui_version.py."
            )
        python = own_python(folder) or ensure_venv()
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    return Host(folder, python, text.split('"')[-2])


def own_python(folder: Path) -> Path | None:
    """Return the Python of a user's ComfyUI, None if it has none of its own."""
    portable = folder.parent / "python_embeded" / "python.exe"  # spelled so by ComfyUI
    candidates = (venv_python(folder / ".venv"), venv_python(folder / "venv"), portable)
    return next((python for python in candidates if python.is_file()), None)
