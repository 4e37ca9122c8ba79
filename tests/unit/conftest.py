"""Make packages and test helpers importable; appended, so that nothing of the host is shadowed."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "support"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
