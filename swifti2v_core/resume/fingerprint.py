"""A digest of everything that determines a result, the same in every process.

A run may resume saved segments only if it would generate the same bits. Tensors, numbers, objects and
closures, also those of other node packs, determine them, so the digest follows all of these by content.
Objects that it cannot inspect get a random digest, so the run starts over instead of resuming wrongly.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import threading
import types
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("SwiftI2V")

Substitute = Callable[[Any], Any]
"""Returns the value to digest in place of an object, or the object itself."""

CORE_PACKAGE = __name__.removesuffix(".resume.fingerprint")
PACK = CORE_PACKAGE.rpartition(".")[0] or CORE_PACKAGE
"""Package of our own classes: the node pack, under the name that ComfyUI gives it, or the core alone."""

PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    range,
    slice,
    re.Pattern,
    PurePath,  # its attributes are computed lazily
    type(None),
    type(Ellipsis),
    type(NotImplemented),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
"""Values that are fully described by their ``repr``."""

DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
"""Members of classes that are written in C."""

IGNORED = (
    uuid.UUID,  # ComfyUI gives its conditions new ones in every process
    logging.Logger,
    weakref.ReferenceType,
    type(threading.Lock()),
    type(threading.RLock()),
    types.ModuleType,
)
"""Types whose content does not influence a result."""

END_ELEMENTS = 128
"""Elements at each end of a weight that stand for it in a quick comparison."""

HASHING_THREADS = 8
"""Threads that hash weights; more would only wait for memory."""


def fingerprint(value: Any, substitute: Substitute = lambda value: value) -> str:
    """Return the SHA-256 of a value's content, as 64 hexadecimal digits.

    Tensors count with shape, type and every byte, on any device; functions with their code and closure;
    other objects with their class and attributes. The order of a mapping does not count, nor does the
    location of a node pack or, in our own, the name of a module.

    Parameters
    ----------
    value
        Any object; it may contain itself.
    substitute
        Replaces objects, for example a model that is identified in another way.

    Returns
    -------
    str
        Equal for equal content. Unique if the value contains an object that cannot be inspected; a warning
        then names its type.
    """
    return _Walk(substitute).digest(value)


def fingerprint_tensors(tensors: Mapping[str, Tensor], check: Callable[[], None]) -> str:
    """Return the SHA-256 of many large tensors, hashed in parallel.

    Parameters
    ----------
    tensors
        Tensors by name.
    check
        Called for every tensor; may raise to cancel.
    """

    def digest(name: str) -> str:
        check()
        return fingerprint(tensors[name])

    names = sorted(tensors)
    with ThreadPoolExecutor(min(HASHING_THREADS, os.cpu_count() or 1)) as pool:
        try:
            return fingerprint(dict(zip(names, pool.map(digest, names), strict=True)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def tensor_ends(tensor: Tensor) -> Any:
    """Return what a quick comparison looks at: a tensor's type, shape, first and last elements.

    Of quantized weights the ends of the tensors inside are returned.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        names, context = flatten()
        return [context, *(tensor_ends(getattr(tensor, name)) for name in names)]
    try:
        flat = tensor.detach().as_subclass(Tensor).reshape(-1)
    except (RuntimeError, NotImplementedError):  # sparse
        return tensor
    return [tensor.dtype, tuple(tensor.shape), flat[:END_ELEMENTS], flat[-END_ELEMENTS:]]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's elements in order, copied from any device."""
    flat = tensor.detach().as_subclass(Tensor).cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class _Walk:
    """One traversal of a value; each object is digested once."""

    def __init__(self, substitute: Substitute) -> None:
        self._substitute = substitute
        # Holds the objects, too: the id of a deleted one could be reused.
        self._digests: dict[int, tuple[str, Any]] = {}

    def digest(self, value: Any) -> str:
        value = self._substitute(value)
        if isinstance(value, PLAIN) and not isinstance(value, Enum):
            return _sha256(_kind(value), repr(value))
        if id(value) not in self._digests:
            self._digests[id(value)] = (_sha256("an object around this one"), value)
            self._digests[id(value)] = (_sha256(_kind(value), *self._content(value)), value)
        return self._digests[id(value)][0]

    def _content(self, value: Any) -> Iterator[str | memoryview]:
        if isinstance(value, Tensor):
            yield from self._tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            yield from (str(value.dtype), repr(value.shape), memoryview(value.tobytes()))
        elif isinstance(value, Mapping):
            yield from sorted(self.digest(key) + self.digest(entry) for key, entry in value.items())
        elif isinstance(value, Set):
            yield from sorted(map(self.digest, value))
        else:
            yield from map(self.digest, _parts(value))

    def _tensor(self, tensor: Tensor) -> Iterator[str | memoryview]:
        yield from (str(tensor.dtype), repr(tuple(tensor.shape)))
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is not None:  # quantized weights: a subclass with the real tensors inside
            names, context = flatten()
            yield from (self.digest(getattr(tensor, name)) for name in names)
            yield self.digest(context)
            return
        try:
            yield tensor_bytes(tensor)
        except (RuntimeError, NotImplementedError):  # sparse, or without data
            yield _unique(tensor)


def _parts(value: Any) -> list[Any]:
    """Return the parts that determine an object, in a fixed order."""
    if isinstance(value, types.GenericAlias):
        return [value.__origin__, value.__args__]
    if isinstance(value, (list, tuple, deque)):
        return list(value)
    if isinstance(value, Enum):
        return [value.name]
    if isinstance(value, type):
        return [_module_name(value), value.__qualname__]
    if isinstance(value, types.FunctionType):
        cells = [_cell(cell) for cell in value.__closure__ or ()]
        return [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)):
        return [value.__self__, value.__qualname__, getattr(value, "__func__", None)]
    if isinstance(value, DESCRIPTORS):
        return [value.__objclass__, value.__name__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, IGNORED) or type(value) is object:
        return []
    return [_attributes(value)]


def _attributes(value: Any) -> Any:
    slots = {
        name: getattr(value, name)
        for kind in type(value).__mro__
        for name, member in vars(kind).items()
        if "__slots__" in vars(kind) and isinstance(member, types.MemberDescriptorType)
        if hasattr(value, name)
    }
    if not slots and not hasattr(value, "__dict__") and not hasattr(type(value), "__slots__"):
        return _unique(value)
    return {**slots, **getattr(value, "__dict__", {})}


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _unique(value: Any) -> str:
    logger.warning("A %s cannot be compared between runs, so this run cannot be resumed.", _kind(value))
    return uuid.uuid4().hex


def _kind(value: Any) -> str:
    return f"{_module_name(type(value))}.{type(value).__qualname__}"


def _module_name(kind: type) -> str:
    """Return the module of a class, independent of where its pack lies; one name for all of our own.

    ComfyUI names a node pack after the path of its folder.
    """
    module = str(kind.__module__)
    if f"{module}.".startswith(f"{PACK}."):
        return "SwiftI2V"
    return re.split(r"[/\\]", module)[-1]


def _sha256(*parts: str | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))  # so that the borders of parts count
        digest.update(data)
    return digest.hexdigest()
