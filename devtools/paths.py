"""Where things lie in this repository."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
VENV = REPO / ".venv"
WORKSPACE = REPO / ".demo"
ASSETS = REPO / "tests" / "assets" / "tiny"
