"""Untrusted text as a quotation in a message."""

from __future__ import annotations

MAX_CHARACTERS = 60
"""Longest quotation, in characters."""


def shortened(text: str) -> str:
    """Return a text for quoting: one printable line, cut to `MAX_CHARACTERS` characters and "..."."""
    start = "".join(character if character.isprintable() else " " for character in text[:MAX_CHARACTERS])
    return f"{start}..." if len(text) > MAX_CHARACTERS else start
