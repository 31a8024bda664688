"""The charts of a report, as SVG with the colours of the page.

Matplotlib's SVG has fixed colours and style attributes. A dark page cannot change the colours,
and a strict content policy blocks the attributes. So only Matplotlib's tick locator is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 34  # margins around the plot
LONGEST = 30  # words; the last bar of the histogram counts all longer captions

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: name of the line in the legend.
        points: (x, y) points; points that are not finite are not drawn.
        style: CSS class: `first`, `second` or `faint`.
    """

    label: str
    points: Sequence[Point]
    style: str

    def finite(self) -> list[Point]:
        """Return the finite points."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]


@dataclass(slots=True)
class Plot:
    """An SVG element with two linear scales.

    Attributes:
        title: text for screen readers.
        x: lowest and highest value of the horizontal axis.
        y: lowest and highest value of the vertical axis.
    """

    title: str
    x: Point
    y: Point
    svg: ET.Element = field(init=False)

    def __post_init__(self) -> None:
        box = f"0 0 {WIDTH} {HEIGHT}"
        self.svg = ET.Element("svg", {"viewBox": box, "role": "img", "aria-label": self.title})

    def at(self, x: float, y: float) -> Point:
        """Return the pixel position of a value."""
        (x0, x1), (y0, y1) = self.x, self.y
        across = (x - x0) / (x1 - x0 or 1)
        up = (y - y0) / (y1 - y0 or 1)
        left = LEFT + across * (WIDTH - LEFT - RIGHT)
        return round(left, 1), round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1)

    def add(self, tag: str, css: str, text: str = "", **attributes: object) -> ET.Element:
        """Append an element; `title` is its tooltip."""
        title = attributes.pop("title", None)
        values = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
        element = ET.SubElement(self.svg, tag, {"class": css, **values})
        element.text = text or None
        if title is not None:
            ET.SubElement(element, "title").text = str(title)
        return element

    def axes(self, x_label: str, y_format: str = "", last_tick: str = "") -> None:
        """Draw grid lines, ticks and the name of the horizontal axis."""
        values = _ticks(self.y, 4)
        decimals = max(len(f"{value:g}".partition(".")[2]) for value in values)
        for value in values:
            x, y = self.at(self.x[0], value)
            self.add("path", "grid", d=f"M{x} {y}H{WIDTH - RIGHT}")
            self.add(
                "text",
                "tick",
                f"{value:{y_format or f'.{decimals}f'}}",
                x=x - 7,
                y=y + 4,
                text_anchor="end",
            )
        for value in _ticks(self.x, 6, whole=True):
            x, _ = self.at(value, self.y[0])
            text = last_tick if last_tick and value == LONGEST else f"{value:,.0f}"
            self.add("text", "tick", text, x=x, y=HEIGHT - BOTTOM + 16, text_anchor="middle")
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.add("text", "axis", x_label, x=middle, y=HEIGHT - 3, text_anchor="middle")

    def markup(self) -> Markup:
        """Return the SVG."""
        return Markup(ET.tostring(self.svg, encoding="unicode"))


def line_chart(title: str, lines: Sequence[Line], *, x_label: str, y_zero: bool = False) -> Markup:
    """Draw lines over a common axis.

    Args:
        title: text for screen readers.
        lines: the lines, the last one on top.
        x_label: name of the horizontal axis.
        y_zero: start the vertical axis at 0.

    Returns:
        The SVG, or "" without a finite point.
    """
    points = [point for line in lines for point in line.finite()]
    if not points:
        return Markup()
    xs, ys = zip(*points, strict=True)
    bounds = _ticks((0 if y_zero else min(ys), max(ys)), 4, outside=True)
    plot = Plot(title, (0, max(xs)), (bounds[0], bounds[-1]))
    plot.axes(x_label)
    for line in lines:
        drawn = [plot.at(x, y) for x, y in line.finite()]
        path = " ".join(f"{x},{y}" for x, y in drawn)
        plot.add("polyline", f"line {line.style}", points=path)
        if line.style == "faint":
            continue
        for (x, y), (step, value) in zip(drawn, line.finite(), strict=True):
            hint = f"{line.label} {value:.3f}, {x_label} {step:,.0f}"
            plot.add("circle", f"dot {line.style}", cx=x, cy=y, r=3, title=hint)
    return plot.markup()


def length_chart(captions: Sequence[int], references: Sequence[int]) -> Markup:
    """Draw the histogram of caption lengths (bars) and of reference lengths (outline).

    Args:
        captions: words of each caption.
        references: words of each reference.
    """
    bars, outline = _fractions(captions), _fractions(references)
    last = max(np.flatnonzero(bars + outline).max(initial=0), 1)
    top = _ticks((0, float(max(bars.max(), outline.max()))), 4, outside=True)[-1]
    plot = Plot("Words per caption and per reference", (-0.5, last + 0.5), (0, top))
    plot.axes("words", ".0%", last_tick=f"{LONGEST}+")
    points = []
    for words in range(last + 1):
        left, y = plot.at(words - 0.5, float(outline[words]))
        right, _ = plot.at(words + 0.5, 0)
        points += [f"{left},{y}", f"{right},{y}"]
        x, y = plot.at(words - 0.4, float(bars[words]))
        width, height = plot.at(words + 0.4, 0)[0] - x, plot.at(0, 0)[1] - y
        count = f"{words}{'+' if words == LONGEST else ''} words"
        hint = f"{count}: {bars[words]:.1%} of captions, {outline[words]:.1%} of references"
        plot.add("rect", "bar", x=x, y=y, width=f"{width:.1f}", height=f"{height:.1f}", title=hint)
    plot.add("polyline", "line second", points=" ".join(points))
    return plot.markup()


def _fractions(lengths: Sequence[int]) -> np.ndarray:
    """Return the fraction of each length from 0 to LONGEST, (LONGEST + 1,)."""
    counts = np.bincount(np.minimum(lengths, LONGEST), minlength=LONGEST + 1)
    return counts / max(1, len(lengths))


def _ticks(bounds: Point, count: int, *, whole: bool = False, outside: bool = False) -> list[float]:
    """Return round numbers inside the bounds, or with `outside`, just below to just above them."""
    low, high = bounds
    if low == high:
        high = low + 1
    ticks = list(map(float, MaxNLocator(count, integer=whole).tick_values(low, high)))
    slack = (high - low) * 1e-9
    return ticks if outside else [t for t in ticks if low - slack <= t <= high + slack]
