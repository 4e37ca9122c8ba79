"""A strip under a preview that shows where in the clip the frames being made belong."""

from __future__ import annotations

from PIL import Image, ImageDraw

FINISHED, CURRENT, WAITING = (150, 150, 150), (80, 170, 255), (45, 45, 45)


def with_place(picture: Image.Image, start: float, stop: float) -> Image.Image:
    """Return a copy of a preview with a timeline below it.

    Parameters
    ----------
    picture
        The preview.
    start, stop
        Part of the clip that is being made, from 0 to 1; what lies before it is finished.
    """
    width, height = picture.size
    strip = max(2, height // 24)
    marked = Image.new("RGB", (width, height + strip), WAITING)
    marked.paste(picture, (0, 0))
    draw = ImageDraw.Draw(marked)
    left = round(start * width)
    right = max(left + 1, round(stop * width))  # at least one pixel, however long the clip
    for begin, end, color in ((0, left, FINISHED), (left, right, CURRENT)):
        if end > begin:
            draw.rectangle((begin, height, end - 1, height + strip - 1), fill=color)
    return marked
