"""ComfyUI and the pack in this process, and a machine with a GPU that holds fake tensors only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from meter import Meter
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")

CAPABILITY = (8, 9)
"""Compute capability of the GPU: Ada, on which the pack chooses no kernel of its own."""

_meters: list[Meter] = []
"""The meter of the machine that runs."""


@dataclass(frozen=True)
class Card:
    """A graphics card and the memory of its computer.

    Attributes
    ----------
    gib
        Memory of the card.
    used_gib
        What other programs use of it.
    ram_gib
        Free memory of the computer.
    """

    gib: float = 24.0
    used_gib: float = 0.6
    ram_gib: float = 48.0

    @property
    def free_gib(self) -> float:
        """What others leave of the card."""
        return self.gib - self.used_gib


class FakeEvent:
    """A ``torch.cuda.Event``; waiting for it is listed."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _wait("event")


class FakeStream:
    """A ``torch.cuda.Stream`` that has nothing to do."""

    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None:
        _wait("stream")


def _wait(kind: str) -> None:
    if _meters:
        _meters[-1].wait(kind)


def boot() -> None:
    """Import ComfyUI from ``COMFYUI_PATH`` and the pack as ``swifti2v``; for the life of the process.

    PyTorch's functions for streams and events are replaced before the pack takes them by name.
    """
    torch.set_num_threads(1)
    torch._C._ensureCUDADeviceGuardSet()
    torch.cuda.Event = FakeEvent  # type: ignore[assignment, misc]
    torch.cuda.current_stream = lambda device=None: FakeStream()  # type: ignore[assignment, return-value]
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    torch.cuda.synchronize = lambda device=None: _wait("synchronize")
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--disable-all-custom-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = arguments
    spec = importlib.util.spec_from_file_location(
        "swifti2v", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["swifti2v"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


@contextlib.contextmanager
def fake_machine(card: Card | None = None, *, keep_on_gpu: bool = False) -> Iterator[Meter]:
    """Run the block on a machine whose GPU is fake; tensors made in it have no values.

    Parameters
    ----------
    card
        What its memory is; `Card` by default.
    keep_on_gpu
        Whether ComfyUI keeps results between nodes on the GPU, as with ``--gpu-only``.
    """
    from comfy import model_management
    from comfy.ldm.modules import attention
    from comfy.ldm.wan import model as wan_model

    meter = Meter([ROOT, Path(os.environ["COMFYUI_PATH"])])
    with contextlib.ExitStack() as stack:
        for name, value in _host_answers(meter, card or Card(), keep_on_gpu).items():
            if hasattr(model_management, name):  # versions of ComfyUI differ
                stack.enter_context(mock.patch.object(model_management, name, value))
        # Chosen by an import on a machine with a GPU; here for the life of the block.
        for module in (attention, wan_model):
            stack.enter_context(
                mock.patch.object(module, "optimized_attention", attention.attention_pytorch)
            )
        stack.enter_context(torch.inference_mode())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        stack.enter_context(meter)
        _meters.append(meter)
        stack.callback(_meters.pop)
        yield meter


def _host_answers(meter: Meter, card: Card, keep_on_gpu: bool) -> dict[str, Any]:
    """Return what ComfyUI's ``model_management`` answers on such a machine, by name."""
    from comfy import model_management

    def is_cpu(device: Any) -> bool:
        return getattr(device, "type", "cuda") == "cpu"

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        gpu = card.free_gib * GIB - meter.gpu.live
        cpu = card.ram_gib * GIB - meter.pinned.live
        result = cpu if is_cpu(device) else gpu
        return (result, 0) if torch_free_too else result

    def total(device: Any = None, torch_total_too: bool = False) -> Any:
        result = (card.ram_gib if is_cpu(device) else card.gib) * GIB
        return (result, result) if torch_total_too else result

    yes, no = (lambda *_, **__: True), (lambda *_, **__: False)
    return {
        "cpu_state": model_management.CPUState.GPU,
        "vram_state": model_management.VRAMState.NORMAL_VRAM,
        "get_torch_device": lambda: CUDA,
        "intermediate_device": lambda: CUDA if keep_on_gpu else CPU,
        "get_free_memory": free,
        "get_total_memory": total,
        "load_models_gpu": lambda *_, **__: None,
        "soft_empty_cache": lambda force=False: None,
        "synchronize": lambda *_: meter.wait("synchronize"),
        "current_stream": lambda device: None,
        "cuda_device_context": lambda device: contextlib.nullcontext(),
        "pin_memory": meter.pin,
        "unpin_memory": yes,
        "is_nvidia": yes,
        "cpu_mode": no,
        "pytorch_attention_flash_attention": yes,
        "ENABLE_PYTORCH_ATTENTION": True,
        "device_supports_non_blocking": yes,
        "should_use_fp16": yes,
        "should_use_bf16": yes,
        "supports_fp8_compute": yes,
        "supports_nvfp4_compute": no,
        "supports_mxfp8_compute": no,
    }
