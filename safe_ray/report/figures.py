"""The figure of a benchmark: accuracy over shots, a panel a data set and one for the average.

matplotlib is imported when a figure is drawn, and draws without a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safe_ray.errors import InputError
from safe_ray.report.field import (
    SAFE,
    TUNED_ONLY,
    ZERO_SHOT,
    Benchmark,
    FieldRow,
    FieldTable,
    field_tables,
    selection_line,
)
from safe_ray.report.intervals import Interval
from safe_ray.report.tables import AVERAGE

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which colour-blind people tell
# apart; line style and marker say the same again.
_STYLES = {
    ZERO_SHOT: {"color": "#555555", "linestyle": (0, (4, 2)), "marker": ""},
    TUNED_ONLY: {"color": "#D55E00", "linestyle": "-", "marker": "s"},
    SAFE: {"color": "#0072B2", "linestyle": "-", "marker": "o"},
}
# Error bars of two methods at one number of shots stand beside each other, in points.
_ASIDE = {TUNED_ONLY: 2.0, SAFE: -2.0}
_PANEL = (2.9, 2.3)
_DPI = 100
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class Series:
    """One method in one panel.

    Attributes:
        method: of the table that the values come from.
        shots: where the method was run.
        values: accuracies there, in [0, 1].
        groups: numbers alike where the values are over the same data sets; a line joins only
            those.
    """

    method: str
    shots: tuple[int, ...]
    values: tuple[Interval, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Panel:
    """One data set, or the average."""

    title: str
    series: tuple[Series, ...]


def panels(benchmark: Benchmark) -> list[Panel]:
    """Return what the figure shows: a panel a data set in the tables' order, then the average.

    Raises:
        InputError: see `field_tables`.
    """
    tables = [table for table in field_tables(benchmark) if table.method in _STYLES]
    datasets = tables[0].datasets
    found = [
        Panel(name, tuple(_series(table, index) for table in tables))
        for index, name in enumerate(datasets)
    ]
    averaged = [row for row in tables[0].rows if row.average is not None]
    if averaged:
        sizes = dict.fromkeys(str(row.averaged) for row in averaged)
        title = f"{AVERAGE} of {', then '.join(sizes)}"
        found.append(Panel(title, tuple(_series(table, None) for table in tables)))
    return found


def _series(table: FieldTable, index: int | None) -> Series:
    rows = [(row, row.average if index is None else row.cells[index]) for row in table.rows]
    there = [(row, value) for row, value in rows if value is not None]
    members = [_members(row) if index is None else () for row, _ in there]
    return Series(
        table.method,
        tuple(row.shots for row, _ in there),
        tuple(value for _, value in there),
        tuple(members.index(member) for member in members),
    )


def _members(row: FieldRow) -> tuple[int, ...]:
    return tuple(index for index, cell in enumerate(row.cells) if cell is not None)


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
    width, height = max(columns * _PANEL[0], 5.8), rows * _PANEL[1] + 1.3
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    shots = sorted({at for panel in shown for series in panel.series for at in series.shots})
    for place, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw(axes, panel, shots, bold=panel.title.startswith(AVERAGE) and place == count - 1)
        if place + columns >= count:
            axes.set_xlabel("shots", fontsize=9)
        if place % columns == 0:
            axes.set_ylabel("accuracy, %", fontsize=9)
    _explain(figure, benchmark)
    return figure


def _draw(axes: Axes, panel: Panel, shots: Sequence[int], bold: bool) -> None:
    from matplotlib.transforms import ScaledTranslation

    low, high = 100.0, 0.0
    for series in panel.series:
        style = _STYLES[series.method]
        means = [100 * value.mean for value in series.values]
        halves = [100 * (value.half_width or 0.0) for value in series.values]
        for group in dict.fromkeys(series.groups):
            chosen = [i for i, other in enumerate(series.groups) if other == group]
            x = [series.shots[i] for i in chosen]
            y = [means[i] for i in chosen]
            if series.method == ZERO_SHOT:
                _zero_shot(axes, series, x, y)
                continue
            aside = ScaledTranslation(_ASIDE[series.method] / 72, 0, axes.figure.dpi_scale_trans)
            axes.errorbar(
                x,
                y,
                yerr=[halves[i] for i in chosen],
                label=series.method,
                transform=axes.transData + aside,
                markersize=4.5,
                linewidth=1.6,
                elinewidth=1.0,
                capsize=2.5,
                zorder=4 if series.method == SAFE else 3,
                **style,  # type: ignore[arg-type]
            )
        low = min([low, *(m - h for m, h in zip(means, halves, strict=True))])
        high = max([high, *(m + h for m, h in zip(means, halves, strict=True))])
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
    style = _STYLES[ZERO_SHOT]
    if len(set(series.groups)) > 1:
        x, y = [x[0] / 1.3, *x, x[-1] * 1.3], [y[0], *y, y[-1]]
        axes.plot(x, y, label=ZERO_SHOT, linewidth=1.4, **style)  # type: ignore[arg-type]
    elif max(y) - min(y) < 1e-9:
        axes.axhline(y[0], label=ZERO_SHOT, linewidth=1.4, **style)  # type: ignore[arg-type]
    else:
        axes.plot(x, y, label=ZERO_SHOT, linewidth=1.4, **style)  # type: ignore[arg-type]


def _explain(figure: Figure, benchmark: Benchmark) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [method for method in (SAFE, TUNED_ONLY, ZERO_SHOT) if method in handles]
    name = " ".join(filter(None, [benchmark.name, benchmark.backbone]))
    # A title of the figure's own would be drawn over a legend that is outside the panels.
    legend = figure.legend(
        [handles[method] for method in order],
        ["tuned only (alpha = 1)" if method == TUNED_ONLY else method for method in order],
        loc="outside upper center",
        ncols=len(order),
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
