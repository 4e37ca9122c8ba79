"""A digest of everything that determines a result, the same in every process.

A checkpoint may be continued only by a run that would give the same bits. What determines them sits in
tensors, numbers, and in objects and closures of other node packs, so the walk follows these by
content. What it cannot look into makes the digest unique: a run is then made anew rather than
continued wrongly.
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

Rename = Callable[[Any], Any]
"""Returns what to walk in an object's place, or the object itself."""

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
    PurePath,  # its attributes are filled when they are first asked for
    type(None),
    type(Ellipsis),
    type(NotImplemented),
    types.GenericAlias,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
"""Values whose ``repr`` is all there is to know."""

DESCRIPTORS = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
"""Parts of classes that are written in C."""

MEANINGLESS = (
    uuid.UUID,  # ComfyUI numbers its conditions so, anew in every process
    logging.Logger,
    weakref.ReferenceType,
    type(threading.Lock()),
    type(threading.RLock()),
    types.ModuleType,
)
"""Kinds of objects whose content has no influence on a result."""

HASHING_THREADS = 8
"""Threads that hash weights; more would wait for the memory."""


def fingerprint(value: Any, rename: Rename = lambda value: value) -> str:
    """Return the SHA-256 of a value's content, as 64 hexadecimal digits.

    Tensors count with shape, type and every byte, wherever they lie; functions with their code and what
    they close over; other objects with their class and attributes. The order of a mapping does not count.

    Parameters
    ----------
    value
        Anything; it may refer to itself.
    rename
        Says what stands for an object: a model that is told apart in another way, for example.

    Returns
    -------
    str
        Equal for equal content. Unique if there is something in the value that cannot be looked into,
        whose kind a warning then names.
    """
    return _Walk(rename).digest(value)


def fingerprint_tensors(tensors: Mapping[str, Tensor], check: Callable[[], None]) -> str:
    """Return the SHA-256 of many large tensors, hashed side by side.

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


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's elements in their order, wherever it lies."""
    flat = tensor.detach().as_subclass(Tensor).cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


class _Walk:
    """One walk through a value; each object is digested once."""

    def __init__(self, rename: Rename) -> None:
        self._rename = rename
        # With the objects themselves, since the id of one that is gone is given to another.
        self._digests: dict[int, tuple[str, Any]] = {}

    def digest(self, value: Any) -> str:
        value = self._rename(value)
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
    """Return what an object consists of, in an order of its own."""
    if isinstance(value, (list, tuple, deque)):
        return list(value)
    if isinstance(value, Enum):
        return [value.name]
    if isinstance(value, type):
        return [value.__module__, value.__qualname__]
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
    if isinstance(value, MEANINGLESS) or type(value) is object:
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
    except ValueError:  # not filled yet
        return None


def _unique(value: Any) -> str:
    logger.warning("A %s cannot be compared with the one of another run.", _kind(value))
    return uuid.uuid4().hex


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _sha256(*parts: str | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))  # so that parts cannot run into each other
        digest.update(data)
    return digest.hexdigest()
