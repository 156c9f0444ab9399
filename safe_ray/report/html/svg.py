"""Plots as SVG: axes with ticks, and what stands in them, by small pure functions.

A plot is 360 units wide and is shown at about as many pixels, so that its letters can be read on a
phone. Colours are classes of the page's style, which knows whether the page is light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safe_ray.report.html.tags import Child, Markup, number, tag

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 12, 38


@dataclass(frozen=True)
class Axis:
    """What is along one side of a plot.

    Attributes:
        title: what it measures.
        low: the value at its beginning.
        high: the value at its end, more than `low`.
        logarithmic: whether equal steps are equal ratios.
        text: how a value is written at its tick.
    """

    title: str
    low: float
    high: float
    logarithmic: bool = False
    text: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """Return how far along the axis a value is, 0 to 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return some round values along it."""
        if self.logarithmic:
            found = [
                step * 10.0**power
                for power in range(
                    math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
                )
                for step in (1, 2, 5)
            ]
            inside = [value for value in found if self.low <= value <= self.high]
            tens = [v for v in inside if math.isclose(math.log10(v), round(math.log10(v)))]
            return tens if len(tens) > 2 else inside or [self.low, self.high]
        step = _step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [count * step for count in range(first, last + 1)]


def axis_of(
    title: str,
    values: Sequence[float],
    logarithmic: bool = False,
    text: Callable[[float], str] = "{:g}".format,
) -> Axis:
    """Return an axis that holds the values, with a little room at both ends.

    Args:
        title: what it measures.
        values: at least one; all above 0 if it is logarithmic.
        logarithmic: whether equal steps are equal ratios.
        text: how a value is written.
    """
    low, high = min(values), max(values)
    if logarithmic:
        room = (high / low) ** 0.06 if high > low else 2.0
        return Axis(title, low / room, high * room, True, text)
    room = 0.06 * (high - low) if high > low else max(abs(high), 1.0) * 0.1
    return Axis(title, low - room, high + room, False, text)


def _step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten, of which three to six go into the span."""
    power = 10.0 ** math.floor(math.log10(span / 3))
    return next(m * power for m in (10, 5, 2, 1) if m * power <= span / 3 * 1.0001)


def place(x: Axis, y: Axis, at: float, value: float) -> tuple[float, float]:
    """Return where a point stands in a plot."""
    return (
        LEFT + x.share(at) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM),
    )


def plot(label: str, x: Axis, y: Axis, *marks: Child) -> Markup:
    """Return a plot: its axes, and marks over them.

    Args:
        label: what it shows, for who cannot see it.
        x: from left to right.
        y: from bottom to top.
        marks: SVG elements.
    """
    floor = HEIGHT - BOTTOM
    grid = []
    for value in x.ticks():
        across, _ = place(x, y, value, y.low)
        grid.append(tag("path", d=f"M{number(across)} {TOP}V{floor}", class_="grid"))
        grid.append(tag("text", x.text(value), x=across, y=floor + 14, text_anchor="middle"))
    for value in y.ticks():
        _, up = place(x, y, x.low, value)
        grid.append(tag("path", d=f"M{LEFT} {number(up)}H{WIDTH - RIGHT}", class_="grid"))
        grid.append(tag("text", y.text(value), x=LEFT - 5, y=up + 4, text_anchor="end"))
    titles = (
        tag("text", x.title, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle"),
        tag(
            "text",
            y.title,
            transform=f"translate(11 {(TOP + floor) // 2}) rotate(-90)",
            text_anchor="middle",
        ),
    )
    return tag(
        "svg",
        grid,
        titles,
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        class_="plot",
    )


def line(x: Axis, y: Axis, points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Return a line through points, broken where a value is not finite."""
    steps, drawn = [], False
    for at, value in points:
        if not math.isfinite(value):
            drawn = False
            continue
        across, up = place(x, y, at, value)
        steps.append(f"{'L' if drawn else 'M'}{number(across)} {number(up)}")
        drawn = True
    return tag("path", d="".join(steps), class_=class_)


def dot(
    x: Axis, y: Axis, at: float, value: float, class_: str, radius: float = 4.0, **more: object
) -> Markup:
    """Return a disc; `more` are attributes, of which `title` is shown under a pointer."""
    across, up = place(x, y, at, value)
    title = more.pop("title", None)
    inside = None if title is None else tag("title", title)
    return tag("circle", inside, cx=across, cy=up, r=radius, class_=class_, **more)


def thinned(count: int, most: int) -> list[int]:
    """Return at most so many of `range(count)`, evenly, with both ends."""
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})
