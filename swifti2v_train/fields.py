"""Settings as typed dataclass fields: made of plain values, or refused in one sentence."""

from __future__ import annotations

from dataclasses import field, fields, is_dataclass
from difflib import get_close_matches
from math import inf
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Section = TypeVar("Section")


def number(default: float, low: float, high: float = inf, *, open_low: bool = False) -> Any:
    """Declare a number of a range; ``open_low`` leaves the lower end out."""
    return field(default=default, metadata={"low": low, "high": high, "open_low": open_low})


def from_values(section: type[Section], values: Any, name: str) -> Section:
    """Return a section made of plain values.

    Parameters
    ----------
    section
        A dataclass whose numbers are declared by `number`.
    values
        What YAML made of it.
    name
        How errors call it.

    Raises
    ------
    ValueError
        If a setting is unknown or a value does not fit.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}, but must be a mapping of settings to values.")
    assert is_dataclass(section)
    known = {entry.name: entry for entry in fields(section)}
    hints = get_type_hints(section)
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1, cutoff=0) or [""]
            raise ValueError(f'{name} has no setting "{key}"; the nearest one is "{nearest[0]}".')
        made[key] = _fit(hints[key], value, f"{name}: {key}", known[key].metadata)
    return section(**made)


def _fit(kind: Any, value: Any, name: str, limits: Any) -> Any:
    if is_dataclass(kind):
        return from_values(kind, value, name)  # type: ignore[arg-type]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        # YAML reads a bare no as false.
        value = "no" if value is False and "no" in choices else value
        if value not in choices:
            nearest = get_close_matches(str(value), choices, n=1, cutoff=0) or choices
            raise ValueError(
                f"{name} is {value!r}, but must be one of {', '.join(choices)}; "
                f"the nearest one is {nearest[0]}."
            )
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{name} is {value!r}, but must be a list of paths, for example [photos].")
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, str):
        value = _as_float(value)  # YAML 1.1 reads 1e-4 as text
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}, but must be {_NAMES[kind]}.")
    if kind in (int, float):
        _check_range(value, name, limits)
    return value


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number, for example 0.0001",
    str: "text in quotes",
}


def _as_float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _check_range(value: float, name: str, limits: Any) -> None:
    low, high = limits["low"], limits["high"]
    above = value > low if limits["open_low"] else value >= low
    if above and value <= high:  # also false for NaN
        return
    rule = f"{'above' if limits['open_low'] else 'at least'} {low:g}"
    rule += f" and at most {high:g}" if high < inf else ""
    nearest = high if value > high else low
    tail = "." if limits["open_low"] and nearest == low else f"; the nearest valid value is {nearest:g}."
    raise ValueError(f"{name} is {value:g}, but must be {rule}{tail}")


def plain_values(value: Any) -> Any:
    """Return a value as YAML writes it: tuples as lists."""
    if isinstance(value, dict):
        return {key: plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, tuple) else value
