"""The figure of a benchmark: accuracy over shots, a panel a data set and one for the average.

matplotlib is imported when a figure is drawn, and draws without a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safe_ray.errors import InputError
from safe_ray.report.field import Benchmark, FieldTable, field_tables
from safe_ray.report.intervals import Interval
from safe_ray.report.protocols import selection_line
from safe_ray.report.rows import AVERAGE
from safe_ray.report.summary import ZERO_SHOT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST = "safe"
"""The method that has the first colour wherever it occurs."""

# The first four are of Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), the last two of
# Tol's muted one (https://sronpersonalpages.nl/~pault/): colour-blind people tell them apart, and
# all stand out from white. The marker says the same again, and the line where colours run out.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#882255", "#332288")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_ZERO_SHOT_STYLE = {"color": "#555555", "linestyle": (0, (4, 2)), "marker": ""}
# Error bars of several methods at one number of shots stand beside each other, in points.
_ASIDE = 4.0
_MOST_ASIDE = 12.0
_PANEL = (2.9, 2.3)
_DPI = 100
_LEGEND_LINE = 0.2
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Series:
    """One method in one panel.

    Attributes:
        method: the method's name.
        title: what the legend calls it.
        shots: where the method was run.
        values: accuracies there, in [0, 1].
        groups: numbers alike where the values are over the same data sets; a line joins only
            those.
    """

    method: str
    title: str
    shots: tuple[int, ...]
    values: tuple[Interval, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """One data set, or the average; every panel has the same methods."""

    title: str
    series: tuple[Series, ...]


def panels(benchmark: Benchmark) -> list[Panel]:
    """Return what the figure shows: a panel a data set in the tables' order, then the average.

    Raises:
        InputError: see `field_tables`.
    """
    tables = [table for table in field_tables(benchmark) if table.is_accuracy]
    datasets = tables[0].datasets
    found = [
        Panel(name, tuple(_series(table, index) for table in tables))
        for index, name in enumerate(datasets)
    ]
    averaged = [row for row in tables[0].rows if row.average is not None]
    if averaged:
        sizes = dict.fromkeys(str(len(row.averaged)) for row in averaged)
        title = f"{AVERAGE} of {', then '.join(sizes)}"
        found.append(Panel(title, tuple(_series(table, None) for table in tables)))
    return found


def _series(table: FieldTable, index: int | None) -> Series:
    rows = [(row, row.average if index is None else row.cells[index]) for row in table.rows]
    there = [(row, value) for row, value in rows if value is not None]
    members = [row.averaged if index is None else () for row, _ in there]
    return Series(
        table.method,
        table.title,
        tuple(row.shots for row, _ in there),
        tuple(value for _, value in there),
        tuple(members.index(member) for member in members),
    )


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        look: matplotlib's colour, line style and marker.
        aside: how far its points stand beside their number of shots, in points.
        above: its place among what is drawn on top of another.
    """

    look: dict[str, Any]
    aside: float
    above: int


def styles_of(methods: Sequence[str]) -> dict[str, Style]:
    """Return a style a method: `FIRST` has the first colour, the others follow in their order.

    Styles differ in colour or in line for up to 24 methods, and in their markers as well for 168.
    """
    order = sorted(
        (method for method in methods if method != ZERO_SHOT), key=lambda name: name != FIRST
    )
    step = min(_ASIDE, _MOST_ASIDE / max(len(order) - 1, 1))
    styles = {
        method: Style(
            {
                "color": _COLOURS[place % len(_COLOURS)],
                "linestyle": _LINES[place // len(_COLOURS) % len(_LINES)],
                "marker": _MARKERS[place % len(_MARKERS)],
            },
            aside=step * (place - (len(order) - 1) / 2),
            above=3 + len(order) - place,
        )
        for place, method in enumerate(order)
    }
    return {**styles, ZERO_SHOT: Style(_ZERO_SHOT_STYLE, 0.0, 3)}


def accuracy_figure(benchmark: Benchmark) -> Figure:
    """Return the figure; its axes are the panels, in their order.

    Raises:
        InputError: matplotlib is not installed; or see `field_tables`.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "The figure needs matplotlib, which is not installed: pip install 'safe-ray[plots]'."
        ) from error
    shown = panels(benchmark)
    count = len(shown)
    columns = count if count <= 3 else min(_MOST_COLUMNS, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    legend_lines = math.ceil(len(shown[0].series) / _MOST_COLUMNS)
    width, height = (
        max(columns * _PANEL[0], 5.8),
        rows * _PANEL[1] + 1.3 + _LEGEND_LINE * (legend_lines - 1),
    )
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    styles = styles_of([series.method for series in shown[0].series])
    shots = sorted({at for panel in shown for series in panel.series for at in series.shots})
    for place, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        bold = panel.title.startswith(AVERAGE) and place == count - 1
        _draw(axes, panel, shots, styles, bold)
        if place + columns >= count:
            axes.set_xlabel("shots", fontsize=9)
        if place % columns == 0:
            axes.set_ylabel("accuracy, %", fontsize=9)
    _explain(figure, shown, benchmark)
    return figure


def _draw(
    axes: Axes, panel: Panel, shots: Sequence[int], styles: Mapping[str, Style], bold: bool
) -> None:
    from matplotlib.transforms import ScaledTranslation

    low, high = 100.0, 0.0
    for series in panel.series:
        style = styles[series.method]
        means = [100 * value.mean for value in series.values]
        below = [100 * (value.mean - _or(value.low, value.mean)) for value in series.values]
        above = [100 * (_or(value.high, value.mean) - value.mean) for value in series.values]
        for group in dict.fromkeys(series.groups):
            chosen = [i for i, other in enumerate(series.groups) if other == group]
            x = [series.shots[i] for i in chosen]
            y = [means[i] for i in chosen]
            if series.method == ZERO_SHOT:
                _zero_shot(axes, series, x, y)
                continue
            aside = ScaledTranslation(style.aside / 72, 0, axes.figure.dpi_scale_trans)
            axes.errorbar(
                x,
                y,
                yerr=[[side[i] for i in chosen] for side in (below, above)],
                label=series.title,
                transform=axes.transData + aside,
                markersize=4.5,
                linewidth=1.6,
                elinewidth=1.0,
                capsize=2.5,
                zorder=style.above,
                **style.look,
            )
        low = min([low, *(m - h for m, h in zip(means, below, strict=True))])
        high = max([high, *(m + h for m, h in zip(means, above, strict=True))])
    room = 0.06 * max(high - low, 5.0)
    axes.set_ylim(max(low - room, 0.0), min(high + room, 100.0))
    axes.set_xscale("log", base=2)
    axes.set_xlim(shots[0] / 1.4, shots[-1] * 1.4)
    axes.set_xticks(list(shots), [str(at) for at in shots])
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    axes.set_title(panel.title, fontsize=10, fontweight="bold" if bold else "normal")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _zero_shot(axes: Axes, series: Series, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw a line across the panel, or across what it is over where that changes with the shots."""
    look: dict[str, Any] = {**_ZERO_SHOT_STYLE, "label": series.title, "linewidth": 1.4}
    if len(set(series.groups)) > 1:
        axes.plot([x[0] / 1.3, *x, x[-1] * 1.3], [y[0], *y, y[-1]], **look)
    elif max(y) - min(y) < 1e-9:
        axes.axhline(y[0], **look)
    else:
        axes.plot(x, y, **look)


def _or(value: float | None, instead: float) -> float:
    return instead if value is None else value


def _explain(figure: Figure, shown: Sequence[Panel], benchmark: Benchmark) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    titles = {series.method: series.title for panel in shown for series in panel.series}
    places = {FIRST: 0, ZERO_SHOT: 2}
    methods = sorted(titles, key=lambda method: places.get(method, 1))
    order = [titles[method] for method in methods if titles[method] in handles]
    name = " ".join(filter(None, [benchmark.name, benchmark.backbone]))
    # A title of the figure's own would be drawn over a legend that is outside the panels.
    legend = figure.legend(
        [handles[title] for title in order],
        order,
        loc="outside upper center",
        ncols=min(len(order), _MOST_COLUMNS),
        title=f"{name}\ntest accuracy, mean over seeds; bars are 95% intervals",
        title_fontsize=11,
        frameon=False,
        fontsize=10,
    )
    legend.get_title().set_multialignment("center")
    line = selection_line(benchmark.results).replace("; nothing", ";\nnothing")
    figure.supxlabel(line, fontsize=8, color="#444444")


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as the bytes of a `png` or `svg` file, the same for the same figure."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "safe_ray"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()
