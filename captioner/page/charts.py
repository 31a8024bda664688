"""The charts of pages of one file, as SVG with the colours of the page.

Matplotlib's SVG has fixed colours and style attributes. A dark page cannot change the colours,
and a strict content policy blocks the attributes. So only Matplotlib's tick locator is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 44, WIDTH - 12, 12, HEIGHT - 34  # edges of the plot
LONGEST = 30  # words; the last bar of the histogram counts all longer captions

Point = tuple[float, float]


class Line(NamedTuple):
    """One line of a chart; points that are not finite are not drawn."""

    label: str
    points: Sequence[Point]
    style: str  # CSS class: `first`, `second` or `faint`


class Plot:
    """An SVG element with two linear scales."""

    def __init__(self, title: str, x: Point, y: Point):
        """Start with the element's begin tag; round numbers extend the vertical scale."""
        ticks = _ticks(y, 4)
        self.x, self.y = x, (ticks[0], ticks[-1])
        self.svg = Markup()
        self.add('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">', WIDTH, HEIGHT, title)

    def at(self, x: float, y: float) -> Point:
        """Return the pixel position of a value."""
        left = np.interp(x, self.x, (LEFT, RIGHT))
        top = np.interp(y, self.y, (BOTTOM, TOP))
        return round(float(left), 1), round(float(top), 1)

    def add(self, element: str, *values: object) -> None:
        """Append SVG; each `{}` takes a value, escaped."""
        self.svg += Markup(element).format(*values)

    def add_line(self, style: str, points: Sequence[Point]) -> None:
        """Append a line through pixel positions."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.add('<polyline class="line {}" points="{}"/>', style, path)

    def axes(self, x_label: str, y_format: str = "", last_tick: str = "") -> None:
        """Draw grid lines, ticks and the name of the horizontal axis."""
        values = [value for value in _ticks(self.y, 4) if self.y[0] <= value <= self.y[1]]
        decimals = max(len(f"{value:g}".partition(".")[2]) for value in values)
        tick = '<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>'
        for value in values:
            _, y = self.at(0, value)
            self.add('<path class="grid" d="M{} {}H{}"/>', LEFT, y, RIGHT)
            self.add(tick, LEFT - 7, y + 4, "end", f"{value:{y_format or f'.{decimals}f'}}")
        for value in _ticks(self.x, 6, whole=True):
            if self.x[0] <= value <= self.x[1]:
                text = last_tick if last_tick and value == LONGEST else f"{value:,.0f}"
                self.add(tick, self.at(value, 0)[0], BOTTOM + 16, "middle", text)
        axis = '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
        self.add(axis, (LEFT + RIGHT) / 2, HEIGHT - 3, x_label)


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_zero: bool = False) -> Markup:
    """Draw lines over a common axis, the last one on top; return "" without a finite point.

    The title is for screen readers; with `y_zero` the vertical axis starts at 0.
    """
    lines = [
        line._replace(points=[point for point in line.points if all(map(math.isfinite, point))])
        for line in lines
    ]
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    xs, ys = zip(*points, strict=True)
    plot = Plot(title, (0, max(1, *xs)), (0 if y_zero else min(ys), max(ys)))
    plot.axes(x_label)
    dot = (
        '<circle class="dot {}" cx="{}" cy="{}" r="3"><title>{} {:.3f}, {} {:,.0f}</title></circle>'
    )
    for label, values, style in lines:
        plot.add_line(style, [plot.at(x, y) for x, y in values])
        for x, y in values if style != "faint" else ():
            plot.add(dot, style, *plot.at(x, y), label, y, x_label, x)
    return plot.svg + Markup("</svg>")


def length_chart(
    captions: Sequence[int],
    others: Sequence[int],
    *,
    names: tuple[str, str] = ("captions", "references"),
    unit: str = "words",
) -> Markup:
    """Draw the histogram of the lengths of captions (bars) and of others (outline).

    The names say what the two are; without any of the others there is no outline.
    """
    bars, outline = _fractions(captions), _fractions(others)
    last = max(np.flatnonzero(bars + outline).max(initial=0), 1)
    title = f"Number of {unit} of {' and '.join(names[: 2 if len(others) else 1])}"
    plot = Plot(title, (-0.5, last + 0.5), (0, max(bars.max(), outline.max())))
    plot.axes(unit, ".0%", last_tick=f"{LONGEST}+")
    bar = '<rect class="bar" x="{}" y="{}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    points = []
    for words in range(last + 1):
        points += [plot.at(words + side, outline[words]) for side in (-0.5, 0.5)]
        left, top = plot.at(words - 0.4, bars[words])
        right, bottom = plot.at(words + 0.4, 0)
        hint = f"{words}{'+' if words == LONGEST else ''} {unit}: {bars[words]:.1%} of {names[0]}"
        hint += f", {outline[words]:.1%} of {names[1]}" if len(others) else ""
        plot.add(bar, left, top, right - left, bottom - top, hint)
    if len(others):
        plot.add_line("second", points)
    return plot.svg + Markup("</svg>")


def calibration_chart(bins: Sequence[tuple[float, int, float, float]]) -> Markup:
    """Draw how often references hold words of each probability, with the number of words.

    A bin is its lowest probability, its number of words, and the shares that a model states and
    that references hold.
    """
    plot = Plot("Stated probability of words, and how often references hold them", (0, 100), (0, 1))
    plot.axes("probability of the word, %", ".0%")
    bar = '<rect class="bar" x="{}" y="{}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>'
    for low, words, stated, held in bins:
        left, top = plot.at(100 * low + 0.8, held)
        right, bottom = plot.at(100 * low + 9.2, 0)
        hint = f"{words:,} words: {stated:.1%} stated, {held:.1%} in a reference"
        plot.add(bar, left, top, right - left, bottom - top, hint)
        place = (left + right) / 2, max(top - 4, TOP - 2)
        plot.add('<text class="tick" x="{}" y="{}" text-anchor="middle">{:,}</text>', *place, words)
    plot.add_line("second", [plot.at(0, 0), plot.at(100, 1)])
    return plot.svg + Markup("</svg>")


def _fractions(lengths: Sequence[int]) -> np.ndarray:
    """Return the fraction of each length from 0 to LONGEST, (LONGEST + 1,)."""
    counts = np.bincount(np.minimum(np.array(lengths, int), LONGEST), minlength=LONGEST + 1)
    return counts / max(1, len(lengths))


def _ticks(bounds: Point, count: int, *, whole: bool = False) -> list[float]:
    """Return round numbers from just below to just above the bounds."""
    low, high = bounds
    high = high if high > low else low + 1
    return [float(tick) for tick in MaxNLocator(count, integer=whole).tick_values(low, high)]
