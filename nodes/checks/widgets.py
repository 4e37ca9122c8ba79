"""Values of widgets. ComfyUI checks typed values; links bring unchecked ones, NaN too."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import Any

import numpy
from comfy_api.latest import io

from ...swifti2v_core.text import shortened
from .describe import is_number, is_whole, shown


def checked_widgets(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Return a node's ``execute`` that first checks the widgets' values against the schema.

    It raises ValueError for a value of the wrong type, out of range or not among the options. NumPy
    numbers become Python's.
    """

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        for widget in cls.define_schema().inputs:
            check = CHECKS.get(type(widget))
            if check is not None and widget.id in inputs:
                inputs[widget.id] = check(widget, inputs[widget.id])
        return execute(cls, **inputs)

    return checked


def _refusal(widget: Any, value: Any, rule: str, nearest: Any) -> ValueError:
    return ValueError(
        f"{widget.id} is {shown(value)}, but must be {rule}; the nearest valid value is {shown(nearest)}."
    )


def _nearest(widget: Any, value: Any) -> Any:
    """Return the value of a number widget nearest to ``value``, its default if that is no number."""
    known = is_number(value) and value == value  # NaN is not
    return min(max(value, widget.min), widget.max) if known else widget.default


def _integer(widget: io.Int.Input, value: Any) -> int:
    nearest = _nearest(widget, value)
    if not is_whole(value) or nearest != value:
        kind = "" if is_whole(value) else "a whole number "
        raise _refusal(widget, value, f"{kind}from {widget.min} to {widget.max}", round(nearest))
    return int(value)


def _float(widget: io.Float.Input, value: Any) -> float:
    nearest = _nearest(widget, value)
    if not is_number(value) or nearest != value:
        kind = "" if is_number(value) else "a number "
        raise _refusal(widget, value, f"{kind}from {widget.min:g} to {widget.max:g}", nearest)
    return float(value)


def _boolean(widget: io.Boolean.Input, value: Any) -> bool:
    if not isinstance(value, bool | numpy.bool_):
        raise _refusal(widget, value, "True or False", widget.default)
    return bool(value)


def _choice(widget: io.Combo.Input, value: Any) -> str:
    if isinstance(value, str) and value in widget.options:
        return value
    if not widget.options:
        raise ValueError(
            f"{widget.id} is {shown(value)}, but its list is empty; put a file into its models folder."
        )
    similar = get_close_matches(shortened(str(value)), widget.options, n=1, cutoff=0)
    raise _refusal(widget, value, "an entry of its list", similar[0])


def _text(widget: io.String.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise _refusal(widget, value, "a text", widget.default)
    return value


CHECKS: dict[type, Callable[[Any, Any], Any]] = {
    io.Int.Input: _integer,
    io.Float.Input: _float,
    io.Boolean.Input: _boolean,
    io.Combo.Input: _choice,
    io.String.Input: _text,
}
"""Reader of the value of each kind of widget."""
