"""Makes the repository's pictures of what the browser tests photographed.

    SWIFTI2V_SCREENSHOTS=FOLDER python3 dev.py test browser
    .venv/bin/python tests/workflows/pictures.py FOLDER

writes a thumbnail beside every shipped workflow, and docs/screenshot-demo.jpg.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[2]
THUMBNAIL, THUMBNAIL_BYTES = (640, 360), 80_000
SCREENSHOT, SCREENSHOT_BYTES = (1600, 900), 300_000
BACKGROUND = "#141414"  # the canvas


def write(picture: Image.Image, path: Path, limit: int) -> None:
    """Write a JPEG of the best quality that stays below a number of bytes."""
    path.parent.mkdir(exist_ok=True)
    for quality in range(92, 40, -4):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size < limit:
            print(f"wrote {path.relative_to(ROOT)}: {path.stat().st_size} bytes, quality {quality}")
            return
    raise SystemExit(f"{path} does not fit into {limit} bytes.")


def load(path: Path) -> Image.Image:
    """Read a picture without transparency."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def main() -> None:
    """Write all pictures."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    for workflow in sorted((ROOT / "workflows").glob("*.json")):
        finished = folder / f"{workflow.stem}-finished.png"
        source = finished if finished.is_file() else folder / f"{workflow.stem}.png"
        thumbnail = ImageOps.pad(load(source), THUMBNAIL, Image.Resampling.LANCZOS, BACKGROUND)
        write(thumbnail, workflow.with_suffix(".jpg"), THUMBNAIL_BYTES)
    screenshot = load(folder / "demo-finished.png").resize(SCREENSHOT, Image.Resampling.LANCZOS)
    write(screenshot, ROOT / "docs" / "screenshot-demo.jpg", SCREENSHOT_BYTES)


if __name__ == "__main__":
    main()
