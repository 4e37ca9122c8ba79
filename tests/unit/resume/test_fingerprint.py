"""The digest of everything that determines a result: equal for equal content in any process."""

import functools
import hashlib
import logging
import re
import subprocess
import sys
import threading
import uuid
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch

from swifti2v_core.resume.fingerprint import fingerprint, fingerprint_tensors, tensor_bytes

ROOT = Path(__file__).resolve().parents[3]


class Kind(Enum):
    FIRST = 1
    SECOND = 2


@dataclass
class Settings:
    scale: float
    name: str = "slg"


class Slots:
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown, hidden):
        self.shown, self.__hidden = shown, hidden


class Opaque:
    """Holds an object that cannot be inspected."""

    def __init__(self):
        self.steps = (number for number in range(3))


def scaled(scale, bias=0):
    def patch(value, *, gain=2):
        return value * scale * gain + bias

    return patch


def weighted(scale):
    def patch(value, *, gain=2):
        return value / scale * gain

    return patch


VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "one": lambda: 1,
    "one as float": lambda: 1.0,
    "one as text": lambda: "1",
    "one as bytes": lambda: b"1",
    "minus zero": lambda: -0.0,
    "zero": lambda: 0.0,
    "not a number": lambda: float("nan"),
    "list": lambda: [1, 2],
    "tuple": lambda: (1, 2),
    "other order": lambda: [2, 1],
    "nested": lambda: [[1], 2],
    "nested otherwise": lambda: [[1, 2]],
    "strings": lambda: ["ab", "c"],
    "strings otherwise": lambda: ["a", "bc"],
    "dict": lambda: {"a": 1, "b": 2},
    "dict, swapped values": lambda: {"a": 2, "b": 1},
    "set": lambda: {"a", "b", "c"},
    "first": lambda: Kind.FIRST,
    "second": lambda: Kind.SECOND,
    "settings": lambda: Settings(0.5),
    "other settings": lambda: Settings(0.25),
    "slots": lambda: Slots(1, 2),
    "other hidden slot": lambda: Slots(1, 3),
    "closure": lambda: scaled(0.5),
    "other scale": lambda: scaled(0.25),
    "other code": lambda: weighted(0.5),
    "other bias": lambda: scaled(0.5, 1),
    "partial": lambda: functools.partial(max, 1, key=abs),
    "other partial": lambda: functools.partial(max, 2, key=abs),
    "method": lambda: Settings(0.5).__eq__,
    "other method": lambda: Settings(0.25).__eq__,
    "code with slices": lambda: lambda x: x[..., :1],
    "code with other slices": lambda: lambda x: x[..., :2],
    "slice": lambda: slice(1, None),
    "range": lambda: range(3),
    "ellipsis": lambda: ...,
    "pattern": lambda: re.compile("a.b"),
    "other flags": lambda: re.compile("a.b", re.DOTALL),
    "path": lambda: Path("a"),
    "other path": lambda: Path("b"),
    "layout in memory": lambda: torch.channels_last,
    "generic type": lambda: list[int],
    "other generic type": lambda: list[Settings],
    "descriptor": lambda: torch.Tensor.half,
    "other descriptor": lambda: torch.Tensor.float,
    "slot of a type": lambda: int.__add__,
    "property": lambda: property(len),
    "class": lambda: Settings,
    "other class": lambda: Slots,
    "tensor": lambda: torch.arange(6.0),
    "reshaped": lambda: torch.arange(6.0).reshape(2, 3),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).T,
    "other type": lambda: torch.arange(6, dtype=torch.int32).view(torch.float32),
    "one bit off": lambda: torch.arange(6.0).nextafter(torch.tensor([0, 0, 0, 9.0, 0, 0])),
    "scalar tensor": lambda: torch.tensor(2.0),
    "no elements": lambda: torch.zeros(0, 3),
    "fp8": lambda: torch.arange(6.0).to(torch.float8_e4m3fn),
    "array": lambda: np.arange(6.0),
    "array of numbers": lambda: np.arange(6),
    "module": lambda: torch.nn.Linear(2, 2).requires_grad_(False).to_empty(device="cpu").apply(fill),
    "wider module": lambda: torch.nn.Linear(2, 3).apply(fill),
}


def fill(module):
    for weight in module.parameters():
        torch.nn.init.constant_(weight, 0.5)


def test_equal_content_is_equal_and_any_other_is_not():
    digests = {name: fingerprint(make()) for name, make in VALUES.items()}
    assert digests == {name: fingerprint(make()) for name, make in VALUES.items()}
    assert len(set(digests.values())) == len(VALUES)


def test_another_process_finds_the_same():
    """Ids, hash seeds and set orders differ from process to process; the digest must not."""
    code = "import test_fingerprint as t; print([t.fingerprint(make()) for make in t.VALUES.values()])"
    paths = [str(ROOT), str(ROOT / "tests" / "unit" / "resume")]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path += {paths!r}; {code}"],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_a_tensor_is_its_bytes(dtype):
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    expected = bytes(tensor.contiguous().untyped_storage())
    assert bytes(tensor_bytes(tensor)) == expected
    strided = tensor.repeat(1, 2)[:, ::2].contiguous().T
    assert bytes(tensor_bytes(strided)) == bytes(strided.contiguous().clone().untyped_storage())


def test_layout_in_memory_does_not_count():
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert fingerprint(tensor.permute(2, 0, 1).contiguous().permute(1, 2, 0)) == fingerprint(tensor)
    assert fingerprint(torch.nn.Parameter(tensor).detach()) == fingerprint(tensor)


def test_a_subclass_counts_with_the_tensors_inside():
    from torch.testing._internal.two_tensor import TwoTensor

    first, second = torch.arange(3.0), torch.ones(3)
    same = fingerprint(TwoTensor(first, second))
    assert same == fingerprint(TwoTensor(first.clone(), second.clone()))
    assert same != fingerprint(TwoTensor(first, second + 1))


def test_ignored_types_and_the_order_of_a_mapping_do_not_count():
    assert fingerprint({"uuid": uuid.uuid4()}) == fingerprint({"uuid": uuid.uuid4()})
    assert fingerprint(threading.Lock()) == fingerprint(threading.Lock())
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_what_cannot_be_inspected_is_never_equal(caplog):
    with caplog.at_level(logging.WARNING, "SwiftI2V"):
        assert fingerprint(Opaque()) != fingerprint(Opaque())
    assert "builtins.generator cannot be compared" in caplog.text
    assert fingerprint(torch.zeros(3, device="meta")) != fingerprint(torch.zeros(3, device="meta"))


def test_a_path_is_the_same_after_its_hash_was_computed():
    path = Path("a") / "b"
    before = fingerprint(path)
    assert hash(path) and fingerprint(path) == before


def test_a_value_may_hold_itself():
    def ring(number):
        values = [number]
        values.append(values)
        return values

    assert fingerprint(ring(1)) == fingerprint(ring(1)) != fingerprint(ring(2))


def test_sharing_does_not_count():
    shared = torch.ones(2)
    assert fingerprint([shared, shared]) == fingerprint([torch.ones(2), torch.ones(2)])


def test_a_substitute_replaces_an_object():
    model = torch.nn.Linear(2, 2)

    def named(value):
        return "the model" if value is model else value

    digest = fingerprint([model], named)
    with torch.no_grad():
        model.weight.zero_()
    assert fingerprint([model], named) == digest == fingerprint(["the model"])


def test_many_tensors_are_hashed_in_parallel():
    weights = {f"block.{index}": torch.full((4,), float(index)) for index in range(40)}
    seen = []
    digest = fingerprint_tensors(weights, lambda: seen.append(1))
    assert digest == fingerprint_tensors(dict(reversed(weights.items())), lambda: None)
    assert len(seen) == 40
    swapped = {**weights, "block.1": weights["block.2"], "block.2": weights["block.1"]}
    assert digest != fingerprint_tensors(swapped, lambda: None)


def test_hashing_weights_can_be_cancelled():
    class Cancelled(BaseException):
        pass

    def cancel():
        raise Cancelled

    with pytest.raises(Cancelled):
        fingerprint_tensors({"weight": torch.ones(2)}, cancel)


def test_it_is_sha256():
    """One value worked out by hand: type and text, each after its length."""
    parts = [b"builtins.str", b"'photo'"]
    packed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    assert fingerprint("photo") == hashlib.sha256(packed).hexdigest()
