"""A dispatch mode over fake CUDA tensors that checks devices and keeps books of memory and copies.

`FakeTensorMode` alone lets convolutions and custom operators mix devices, so devices are checked here for
every operator.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from values import follow, read, tensors_in

aten = torch.ops.aten


@dataclass(frozen=True)
class Traits:
    """What the meter must know of an operator, by its name.

    Attributes
    ----------
    crosses
        It may read tensors of one device and write on another.
    indexes
        It copies indices from the CPU to the device of what they index.
    copies
        It can be a copy between devices.
    """

    crosses: bool
    indexes: bool
    copies: bool


CROSSING = (
    "aten.copy_", "aten._to_copy", "aten.to.", "aten.empty_like", "aten.zeros_like", "aten.ones_like",
    "aten.full_like", "aten.rand", "aten.new_", "aten.type_as", "aten.set_", "aten.lift",
)  # fmt: skip
INDEXING = ("aten.index", "aten._unsafe_index")
COPYING = ("aten.copy_", "aten._to_copy", "aten.to.")

CONVOLUTIONS = {aten.conv2d.default, aten.conv3d.default, aten.convolution.default}
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

READS = {aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default}
"""Operators that return a value to Python, for which the program waits for the GPU."""

DATA_DEPENDENT = {aten.nonzero.default, aten.masked_select.default, aten._unique2.default}
"""Operators whose result's shape depends on values."""


def _moved(x: torch.Tensor, source: int, destination: int) -> torch.Tensor:
    order = list(range(x.dim()))
    order.insert(destination % x.dim(), order.pop(source))
    return x.permute(order)


SHORTCUTS = {
    aten.rms_norm.default: lambda x, *_, **__: torch.empty_like(x),
    aten.silu.out: lambda x, *, out: out,
    aten.movedim.int: _moved,
}
"""Frequent operators that are one CUDA kernel, or none, and many fake ones."""

BLOCK = 512
"""Bytes to which PyTorch's allocator rounds every block of GPU memory."""

SAMPLING_LOOP = "k_diffusion/sampling.py"
"""Where ComfyUI's samplers loop over the steps."""


class WrongDevice(RuntimeError):
    """An operator got tensors of several devices."""


@dataclass(frozen=True)
class Event:
    """A copy between devices, or a wait for the GPU.

    Attributes
    ----------
    place
        ``file:line`` of the innermost line of the pack or of ComfyUI.
    ours
        Whether that line is the pack's.
    in_loop
        Whether a sampler of ComfyUI was looping over its steps.
    kind
        For a copy ``"cuda->cpu"`` or ``"cpu->cuda"``, for a wait the operator.
    blocking
        Whether the program waits for it.
    size
        Bytes copied.
    """

    place: str
    ours: bool
    in_loop: bool
    kind: str
    blocking: bool = True
    size: int = 0


@dataclass
class Gauge:
    """Live bytes of storages and their peak."""

    live: int = 0
    peak: int = 0
    storages: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def add(self, tensor: torch.Tensor, size: int) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.storages:
            return

        def freed(_: Any) -> None:
            self.live -= size
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's storage is counted."""
        return tensor.untyped_storage()._cdata in self.storages


class Meter(TorchDispatchMode):
    """Checks devices, meters memory and lists copies and waits.

    Parameters
    ----------
    roots
        Folders of the pack and of ComfyUI, in this order.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        super().__init__()
        self._pack, self._comfyui = (f"{root}/" for root in roots)
        self._shipped = (f"{self._pack}nodes/", f"{self._pack}swifti2v_core/")
        self._traits: dict[Any, Traits] = {}
        self.gpu, self.cpu, self.pinned = Gauge(), Gauge(), Gauge()
        self.copies: list[Event] = []
        self.waits: list[Event] = []
        self.most_elements = 0
        self.weights = 0

    def start(self) -> None:
        """Forget what was counted; what is on the GPU now are the weights."""
        self.weights = self.gpu.live
        for gauge in (self.gpu, self.cpu, self.pinned):
            gauge.peak = gauge.live
        self.copies, self.waits, self.most_elements = [], [], 0

    @property
    def peak(self) -> int:
        """Most bytes on the GPU since `start`, beside the weights."""
        return self.gpu.peak - self.weights

    def copied(self, kind: str, *, ours: bool = True, in_loop: bool | None = None) -> list[Event]:
        """Return the copies of one kind, ``"cuda->cpu"`` or ``"cpu->cuda"``, the pack's or ComfyUI's."""
        return [
            copy
            for copy in self.copies
            if copy.kind == kind and copy.ours == ours and in_loop in (None, copy.in_loop)
        ]

    def ours_in_loop(self) -> list[Event]:
        """Return the pack's copies and waits inside the sampling loop."""
        return [event for event in self.copies + self.waits if event.ours and event.in_loop]

    def wait(self, kind: str) -> None:
        """List a wait for the GPU at the line that runs."""
        self.waits.append(self._event(kind))

    def pin(self, tensor: torch.Tensor) -> bool:
        """Count a CPU tensor as pinned, as ComfyUI's ``pin_memory``."""
        self.pinned.add(tensor, tensor.untyped_storage().nbytes())
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        kwargs = kwargs or {}
        if func in READS:
            return self._read(func, args)
        if func is aten.is_pinned.default:
            return self.pinned.holds(args[0])
        traits = self._traits_of(func)
        inputs = [*tensors_in(args), *tensors_in(kwargs.values())]
        if func in DATA_DEPENDENT and inputs[0].device.type == "cuda":
            self.wait(str(func))
        if not traits.crosses:
            self._check_devices(func, traits, inputs)
        one_dtype = len({tensor.dtype for tensor in inputs}) == 1
        result = (SHORTCUTS.get(func, func) if one_dtype else func)(*args, **kwargs)
        if func in CONVOLUTIONS:
            result = _as_cudnn(args[0], result)
        outputs = tensors_in((result,))
        for output in outputs:
            self._count(output, bool(kwargs.get("pin_memory")))
        if traits.copies:
            self._list_copy(func, args, kwargs, result)
        follow(func, args, kwargs, outputs)
        return result

    def _traits_of(self, func: Any) -> Traits:
        traits = self._traits.get(func)
        if traits is None:
            traits = Traits(*(str(func).startswith(names) for names in (CROSSING, INDEXING, COPYING)))
            self._traits[func] = traits
        return traits

    def _read(self, func: Any, args: tuple[Any, ...]) -> Any:
        """Return the value that Python asks for; an unknown one is True or 1."""
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda" for leaf in args):
            self.wait(str(func))
        known = read(func, args)
        if known is not None:
            return known
        if func in (aten.is_nonzero.default, aten.equal.default) or args[0].dtype == torch.bool:
            return True
        return 1.0 if args[0].dtype.is_floating_point else 1

    def _check_devices(self, func: Any, traits: Traits, inputs: list[torch.Tensor]) -> None:
        devices = {tensor.device for tensor in inputs if tensor.dim() > 0}  # scalars may come from the CPU
        if len(devices) <= 1:
            return
        if traits.indexes and inputs[0].device.type == "cuda":
            size = sum(tensor.nbytes for tensor in inputs if tensor.device.type == "cpu")
            self.copies.append(self._event("cpu->cuda", size=size))
            return
        raise WrongDevice(
            f"{func} got tensors on {', '.join(sorted(map(str, devices)))} at {self._place()[0]}"
        )

    def _count(self, tensor: torch.Tensor, pinned: bool) -> None:
        if tensor.device.type == "cuda":
            self.gpu.add(tensor, -(-tensor.untyped_storage().nbytes() // BLOCK) * BLOCK)
            self.most_elements = max(self.most_elements, tensor.numel())
            return
        self.cpu.add(tensor, tensor.untyped_storage().nbytes())
        if pinned:
            # PyTorch's allocator of pinned memory rounds to powers of two.
            self.pinned.add(tensor, 1 << max(0, tensor.untyped_storage().nbytes() - 1).bit_length())

    def _list_copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        target, source = (args[0], args[1]) if func is aten.copy_.default else (result, args[0])
        if target.device.type == source.device.type:
            return
        positional = func is aten.copy_.default and len(args) > 2 and args[2]
        asked = bool(kwargs.get("non_blocking", positional))
        host = target if target.device.type == "cpu" else source
        kind = f"{source.device.type}->{target.device.type}"
        # Copies from or to pageable memory are staged: those to the CPU always wait.
        blocking = not asked or not (kind == "cpu->cuda" or self.pinned.holds(host))
        self.copies.append(self._event(kind, blocking=blocking, size=target.nbytes))

    def _event(self, kind: str, *, blocking: bool = True, size: int = 0) -> Event:
        place, ours, in_loop = self._place()
        return Event(place, ours, in_loop, kind, blocking, size)

    def _place(self) -> tuple[str, bool, bool]:
        """Return the innermost line of the pack or of ComfyUI, whether it is ours, whether steps run."""
        place, ours, in_loop = "elsewhere", False, False
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if place == "elsewhere" and file.startswith((*self._shipped, self._comfyui)):
                ours = file.startswith(self._shipped)
                name = file.removeprefix(self._pack if ours else self._comfyui)
                place = f"{name}:{frame.f_lineno}"
            in_loop = in_loop or file.endswith(SAMPLING_LOOP)
            frame = frame.f_back
        return place, ours, in_loop


def _as_cudnn(x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return a convolution's result in the layout that cuDNN gives: channels last for channels last."""
    layout = CHANNELS_LAST.get(result.dim())
    if result.device.type != "cuda" or layout is None or not x.is_contiguous(memory_format=layout):
        return result
    return result.contiguous(memory_format=layout)
