"""Values of small fake tensors, so that schedules and decisions run with the numbers they have in use.

A `FakeTensor` has a shape and a device, but no values. Schedules need them: how many steps run above the
experts' boundary, whether the last sigma is 0. So the result of an operator is computed beside the fake
one wherever every input is known and small.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

LARGEST = 4096
"""Most elements of a tensor whose values are kept."""

WITHOUT_VALUES = ("aten.empty", "aten.new_empty", "aten.rand", "aten.normal", "aten.bernoulli")
"""Operators whose results are arbitrary."""

CPU = torch.device("cpu")


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors among an operator's arguments or results, also those in lists of one level."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, torch.Tensor)]
    return found


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a small tensor's values as a real CPU tensor, None if they are unknown."""
    if isinstance(tensor, FakeTensor):
        return getattr(tensor, "known_value", None)
    return tensor if tensor.numel() <= LARGEST else None


def read(func: Any, args: tuple[Any, ...]) -> Any:
    """Return the Python value of an operator that gives one, None if a value is unknown."""
    values = [value_of(leaf) for leaf in args]
    if any(value is None for value in values):
        return None
    with _disable_current_modes():
        return func(*values)


def follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[torch.Tensor]) -> None:
    """Attach the values to the outputs of an operator, or forget those that it overwrote."""
    computed = None
    if outputs and all(output.numel() <= LARGEST for output in outputs):
        computed = _compute(func, args, kwargs)
    for index, output in enumerate(outputs):
        if isinstance(output, FakeTensor) and (computed or hasattr(output, "known_value")):
            output.known_value = computed[index] if computed else None


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor] | None:
    """Return the real results of an operator, None if an input is unknown or the result arbitrary."""
    inputs = tensors_in((*args, *kwargs.values()))
    if any(value_of(tensor) is None for tensor in inputs) or str(func).startswith(WITHOUT_VALUES):
        return None

    def real(argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return value_of(argument)
        return CPU if isinstance(argument, torch.device) else argument

    real_args, real_kwargs = tree_map(real, (args, {**kwargs}))
    if "pin_memory" in real_kwargs:
        real_kwargs["pin_memory"] = False
    with _disable_current_modes():
        return tensors_in((func(*real_args, **real_kwargs),))
