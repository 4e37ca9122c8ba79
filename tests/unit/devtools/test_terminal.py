"""The live line."""

from __future__ import annotations

import io

import pytest

from devtools import terminal

Patch = pytest.MonkeyPatch


def test_live_line_overwrites_itself_on_a_terminal(monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    live = terminal.LiveLine(stream)
    live.show("x" * 50)
    live.show("short")
    live.close()
    assert stream.getvalue() == "\r" + "x" * 19 + "\rshort" + " " * 14 + "\n"


def test_live_line_is_sparse_in_a_file() -> None:
    stream = io.StringIO()
    live = terminal.LiveLine(stream, every=60)
    live.show("first")
    live.show("second")
    live.close()
    assert stream.getvalue() == "first\n"
