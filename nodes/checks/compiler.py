"""Requirements of torch.compile."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec

import torch

COMPILING_TORCH = "2.8"
"""First version of PyTorch that lets us choose the guards to keep."""

COMPILERS = ("g++", "clang++", "c++", "cl")
"""Programs that PyTorch compiles CPU code with."""

LAUNCHER_COMPILERS = ("gcc", "clang", "cc", *COMPILERS)
"""Programs that Triton compiles its launcher of GPU code with; on Windows it brings its own."""


def check_can_compile(device: str) -> None:
    """Raise ValueError if torch.compile will not find what it needs for a kind of device.

    Parameters
    ----------
    device
        As PyTorch names it, see ComfyUI's ``get_torch_device``.
    """
    if torch.__version__ < COMPILING_TORCH:
        raise ValueError(
            f"compile_blocks is on, but needs PyTorch 2.8 and this is {torch.__version__}; update PyTorch "
            "or switch compile_blocks off."
        )
    gpu = device not in ("cpu", "mps")
    if gpu and find_spec("triton") is None:
        raise ValueError(
            "compile_blocks is on, but torch.compile needs Triton on this GPU and it is not installed; "
            "install it (triton-windows on Windows) or switch compile_blocks off."
        )
    needed = LAUNCHER_COMPILERS if gpu else COMPILERS
    if not (gpu and sys.platform == "win32") and not any(map(shutil.which, needed)):
        raise ValueError(
            f"compile_blocks is on, but torch.compile needs a compiler and found none of "
            f"{', '.join(needed)}; install one or switch compile_blocks off."
        )
