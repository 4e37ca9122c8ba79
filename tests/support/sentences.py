"""Expect an error of exactly some words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from devtools.terminal import DevError


def sentence(text: str) -> Any:
    """Expect a DevError of exactly these words."""
    return pytest.raises(DevError, match=f"^{re.escape(text)}$")
