"""Values of widgets, checked when a graph is queued and again when a node runs.

ComfyUI checks typed values; links bring unchecked ones, NaN too.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature
from typing import Any, TypeVar

import numpy
from comfy_api.latest import io

from ...swifti2v_core.text import shortened
from .describe import is_number, is_whole, shown

Node = TypeVar("Node", bound=type[io.ComfyNode])

ValueCheck = tuple[Callable[..., object], tuple[str, ...]]
"""Raises ValueError for wrong values of some inputs, which are named in its order."""


def checked_widgets(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Return a node's ``execute`` that first checks the widgets' values.

    It raises ValueError for a value of the wrong type, out of range or not among the options, and for
    what `refused_when_queued` names. NumPy numbers become Python's.
    """

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
        inputs = _read_widgets(cls, inputs)
        _check_values(cls, _defaults(cls) | inputs)
        return execute(cls, **inputs)

    return checked


def refused_when_queued(*checks: ValueCheck) -> Callable[[Node], Node]:
    """Return a class decorator for a node with values that can be judged before anything runs.

    ComfyUI calls ``validate_inputs`` for every node of a queued graph, with the inputs that its signature
    names; it leaves those to us altogether. Linked inputs arrive as None, unconnected ones not at all.

    Parameters
    ----------
    checks
        Functions that judge one or more inputs. In the queue each runs if none of its inputs is linked;
        `checked_widgets` runs all of them.
    """
    names = list(dict.fromkeys(name for _, inputs in checks for name in inputs))

    def validate_inputs(cls: type[io.ComfyNode], /, **inputs: Any) -> bool | str:
        constants = {name: value for name, value in inputs.items() if value is not None}
        known = _defaults(cls) | constants
        for linked in inputs.keys() - constants.keys():
            known.pop(linked, None)
        try:
            _check_values(cls, known | _read_widgets(cls, constants))
        except ValueError as error:
            return str(error)
        return True

    # ComfyUI reads the names from the signature.
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in ("cls", *names)]
    validate_inputs.__signature__ = Signature(parameters)  # type: ignore[attr-defined]

    def decorate(node: Node) -> Node:
        node.VALUE_CHECKS = checks
        node.validate_inputs = classmethod(validate_inputs)
        return node

    return decorate


def _defaults(node: type[io.ComfyNode]) -> dict[str, Any]:
    """Return the value of every input that is not given: its default, None for a socket."""
    return {each.id: getattr(each, "default", None) for each in node.define_schema().inputs}


def _read_widgets(node: type[io.ComfyNode], inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs with those of widgets checked against the schema."""
    read = dict(inputs)
    for widget in node.define_schema().inputs:
        check = CHECKS.get(type(widget))
        if check is not None and widget.id in inputs:
            read[widget.id] = check(widget, inputs[widget.id])
    return read


def _check_values(node: type[io.ComfyNode], known: dict[str, Any]) -> None:
    """Run the checks of a node whose inputs are all known."""
    for check, names in getattr(node, "VALUE_CHECKS", ()):
        if known.keys() >= set(names):
            check(*(known[name] for name in names))


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
