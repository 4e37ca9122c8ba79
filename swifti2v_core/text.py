"""Text that users or strangers wrote, as a part of our sentences."""

from __future__ import annotations

LONGEST = 60
"""Characters of a quotation."""


def shortened(text: str) -> str:
    """Return a text for quoting: on one line, printable, at most `LONGEST` characters and "..."."""
    start = "".join(character if character.isprintable() else " " for character in text[:LONGEST])
    return f"{start}..." if len(text) > LONGEST else start
