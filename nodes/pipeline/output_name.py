"""Placeholders in the names of files, filled in as ComfyUI's page does for ComfyUI's own save nodes."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import Any

logger = logging.getLogger("SwiftI2V")

PLACEHOLDER = re.compile(r"%([^%]+)%")

DATE = "date:"
"""Start of a placeholder for the time, whose format follows."""

DATE_PART = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|y{2,4}")
"""Parts of that format; anything else stays."""

OF_COMFYUI = {"width", "height", "year", "month", "day", "hour", "minute", "second"}
"""Placeholders that ComfyUI fills in when it saves."""

NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
"""Characters that become underscores in the value of a widget."""


def fill_placeholders(
    prefix: str, prompt: dict[str, Any] | None, extra: dict[str, Any] | None, now: datetime
) -> str:
    """Return a file name with the time and the values of widgets in it.

    Parameters
    ----------
    prefix
        Name with ``%date:yyyy-MM-dd%`` or ``%Node.widget%``, where Node is the "Node name for S&R", the
        kind or the title of a node.
    prompt
        The graph as queued: for each number of a node its ``class_type``, ``inputs`` and ``_meta``.
    extra
        What else ComfyUI saves with a file; its ``workflow`` holds the names for S&R.
    now
        The time.

    Returns
    -------
    str
        The name; placeholders that stand for nothing stay, and the log says so.
    """

    def fill(match: re.Match[str]) -> str:
        text = match.group(1)
        if text.startswith(DATE):
            return format_date(text.removeprefix(DATE), now)
        name, dot, widget = text.partition(".")
        if dot and "." not in widget:
            for inputs in _nodes_called(name, prompt or {}, extra or {}):
                if not isinstance(inputs.get(widget, []), list):  # a list is a link
                    return NOT_IN_NAMES.sub("_", _as_page(inputs[widget]))
        if text not in OF_COMFYUI:
            logger.warning(
                "%%%s%% in filename_prefix stands for no widget of the graph, so it stays in the name.",
                text,
            )
        return match.group()

    return PLACEHOLDER.sub(fill, prefix)


def format_date(form: str, time: datetime) -> str:
    """Return a time in a format of yy, yyyy, M, MM, d, dd, h, hh, m, mm, s and ss."""

    def part(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] == "y":
            return {2: f"{time.year % 100:02}", 4: f"{time.year:04}"}.get(len(found), found)
        numbers = {"M": time.month, "d": time.day, "h": time.hour, "m": time.minute, "s": time.second}
        return str(numbers[found[0]]).zfill(len(found))

    return DATE_PART.sub(part, form)


def _nodes_called(name: str, prompt: dict[str, Any], extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the inputs of the nodes of a name: by the name for S&R, then by kind, then by title."""
    listed = (extra.get("workflow") or {}).get("nodes") or []
    named = {
        str(node.get("id"))
        for node in listed
        if (node.get("properties") or {}).get("Node name for S&R") == name
    }
    ranks: list[list[dict[str, Any]]] = [[], [], []]
    for number, node in prompt.items():
        inputs = node.get("inputs", {})
        if number in named:
            ranks[0].append(inputs)
        elif node.get("class_type") == name:
            ranks[1].append(inputs)
        elif (node.get("_meta") or {}).get("title") == name:
            ranks[2].append(inputs)
    return [inputs for rank in ranks for inputs in rank]


def _as_page(value: Any) -> str:
    """Return the value of a widget as the page writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
