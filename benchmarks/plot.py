"""Panels with curves, drawn with PIL: enough for a report, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 800, 400
"""Size of a panel in pixels of the saved picture."""

LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 56
"""Margins around the axes."""

SMOOTHING = 2
"""Drawn at twice the size and reduced, since PIL draws lines without antialiasing."""

INK, MUTED, GRID, BAND, MARK = "#222222", "#666666", "#e4e4e4", "#e3f1e3", "#b9a7d6"
BLUE, ORANGE, GRAY = "#1f6fb4", "#d9691c", "#8a8a8a"


@dataclass(frozen=True)
class Series:
    """One curve; values that are not finite leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str = BLUE
    style: Literal["line", "dashed", "bars"] = "line"


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    ``band`` is a shaded range of y with its label, ``marks`` are vertical lines with theirs, and
    ``show`` names values of y that must lie within the axis.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    band: tuple[float, float, str] | None = None
    marks: tuple[Sequence[float], str] = ((), "")
    show: Sequence[float] = field(default_factory=tuple)


def save_panels(panels: Sequence[Panel], heading: str, path: Path) -> None:
    """Draw panels in two columns under a heading and save them as a picture."""
    rows = -(-len(panels) // 2)
    size = (2 * WIDTH * SMOOTHING, (rows * HEIGHT + 56) * SMOOTHING)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.text((LEFT * SMOOTHING, 20 * SMOOTHING), heading, INK, _font(22))
    for index, panel in enumerate(panels):
        _Axes(pen, panel, index % 2 * WIDTH, 56 + index // 2 * HEIGHT).draw()
    picture.resize((size[0] // SMOOTHING, size[1] // SMOOTHING), Image.LANCZOS).save(path)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Return at most ``most`` round numbers within a range; ``whole`` keeps to integers."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [step * power * decade for decade in (1, 10) for step in (1, 2, 5)]
    step = next(step for step in steps if step >= rough and (not whole or step >= 1))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SMOOTHING)


class _Axes:
    """Draws one panel with its upper left corner at a place of the picture."""

    def __init__(self, pen: ImageDraw.ImageDraw, panel: Panel, left: int, top: int) -> None:
        self.pen, self.panel, self.corner = pen, panel, (left, top)
        self.left, self.right = (left + LEFT) * SMOOTHING, (left + WIDTH - RIGHT) * SMOOTHING
        self.top, self.bottom = (top + TOP) * SMOOTHING, (top + HEIGHT - BOTTOM) * SMOOTHING
        bars = any(series.style == "bars" for series in panel.series)
        edge = 0.5 if bars else 0.0
        x = [value for series in panel.series for value in series.x] or [0.0]
        self.x_low, self.x_high = min(x) - edge, max(max(x), min(x) + 1) + edge
        y = [value for series in panel.series for value in series.y if math.isfinite(value)]
        y += [*panel.show, *((panel.band or ())[:2])]
        low, high = min(y, default=0.0), max(y, default=1.0)
        margin = 0.06 * (high - low) or 0.5
        self.y_low, self.y_high = low - margin * (low != 0), high + margin

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies in the picture."""
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def draw(self) -> None:
        """Draw everything, what must be seen last."""
        if self.panel.band:
            (_, upper), (_, lower) = (self.place(0, value) for value in reversed(self.panel.band[:2]))
            self.pen.rectangle((self.left, upper, self.right, lower), fill=BAND)
        self._draw_scales()
        for x in self.panel.marks[0]:
            across = self.place(x, 0)[0]
            self.pen.line((across, self.top, across, self.bottom), MARK, 2 * SMOOTHING)
        for series in self.panel.series:
            draw = self._draw_bars if series.style == "bars" else self._draw_curve
            draw(series)
        self.pen.rectangle((self.left, self.top, self.right, self.bottom), outline=MUTED, width=SMOOTHING)
        self._draw_words()

    def _draw_scales(self) -> None:
        values = ticks(self.y_low, self.y_high, 6)
        decimals = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
        for value in values:
            _, height = self.place(0, value)
            self.pen.line((self.left, height, self.right, height), GRID, SMOOTHING)
            where = (self.left - 8 * SMOOTHING, height)
            self.pen.text(where, f"{value + 0.0:.{decimals}f}", MUTED, _font(14), anchor="rm")
        for value in ticks(self.x_low, self.x_high, 11, whole=True):
            across, _ = self.place(value, 0)
            self.pen.line((across, self.bottom, across, self.bottom + 5 * SMOOTHING), MUTED, SMOOTHING)
            where = (across, self.bottom + 9 * SMOOTHING)
            self.pen.text(where, f"{value:.0f}", MUTED, _font(14), anchor="mt")

    def _draw_curve(self, series: Series) -> None:
        points = [
            self.place(x, y) if math.isfinite(y) else None for x, y in zip(series.x, series.y, strict=True)
        ]
        for start, stop in pairwise(points):
            if start and stop:
                self._draw_stroke(start, stop, series)
        if series.style == "line" and len(points) <= 70:
            for x, y in filter(None, points):
                self.pen.circle((x, y), 3.5 * SMOOTHING, series.color)

    def _draw_stroke(self, start: tuple[float, float], stop: tuple[float, float], series: Series) -> None:
        """Draw one straight stroke; dashes restart at every point, so few points make good dashes."""
        length = math.dist(start, stop)
        dash = 8.0 * SMOOTHING if series.style == "dashed" else length or 1.0
        for index in range(0, math.ceil(length / dash), 2):
            ends = (index * dash / length, min(1.0, (index + 1) * dash / length))
            line = [tuple(a + (b - a) * t for a, b in zip(start, stop, strict=True)) for t in ends]
            self.pen.line(line, series.color, 2 * SMOOTHING)

    def _draw_bars(self, series: Series) -> None:
        for x, y in zip(series.x, series.y, strict=True):
            if math.isfinite(y):
                (left, end), (right, zero) = self.place(x - 0.35, y), self.place(x + 0.35, 0)
                self.pen.rectangle((left, min(end, zero), right, max(end, zero)), fill=series.color)

    def _draw_words(self) -> None:
        self.pen.text((self.left, self.top - 12 * SMOOTHING), self.panel.title, INK, _font(18), anchor="ls")
        middle = ((self.left + self.right) / 2, self.bottom + 32 * SMOOTHING)
        self.pen.text(middle, self.panel.x_label, INK, _font(15), anchor="mt")
        self._draw_y_label()
        self._draw_legend()

    def _draw_y_label(self) -> None:
        """Write the label of the y axis upwards, left of its numbers."""
        font = _font(15)
        left, top, right, bottom = font.getbbox(self.panel.y_label)
        label = Image.new("L", (round(right - left), round(bottom - top)))
        ImageDraw.Draw(label).text((-left, -top), self.panel.y_label, 255, font)
        label = label.rotate(90, expand=True)
        middle = (self.top + self.bottom - label.height) // 2
        self.pen.bitmap((self.corner[0] * SMOOTHING + 8 * SMOOTHING, middle), label, INK)

    def _draw_legend(self) -> None:
        """Name curves, band and marks in one line, right above the axes."""
        entries = [(series.label, series.color) for series in self.panel.series if series.label]
        if self.panel.band:
            entries.append((self.panel.band[2], "#a8d3a8"))
        if self.panel.marks[0]:
            entries.append((self.panel.marks[1], MARK))
        font, right, line = _font(14), self.right, self.top - 12 * SMOOTHING
        for label, color in reversed(entries):
            self.pen.text((right, line), label, MUTED, font, anchor="rs")
            right -= font.getlength(label) + 8 * SMOOTHING
            swatch = (right - 16 * SMOOTHING, line - 9 * SMOOTHING, right, line - 3 * SMOOTHING)
            self.pen.rectangle(swatch, fill=color)
            right -= 32 * SMOOTHING
