"""Where things lie in this repository, whose packages can be imported after this module."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that a host's packages are not shadowed

TINY = ROOT / "tests" / "assets" / "tiny"
