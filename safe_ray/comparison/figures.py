"""The figures of a comparison: accuracy over shots, and the critical difference of mean ranks.

matplotlib is imported when a figure is drawn, and draws without a display.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_ray.comparison.analysis import Average, Ranking
from safe_ray.comparison.pairing import ZERO_SHOT, Contestant, Paired
from safe_ray.comparison.statistics import cliques
from safe_ray.comparison.tables import title_of
from safe_ray.errors import InputError
from safe_ray.specs import ALL_SHOTS, shots_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which colour-blind people tell
# apart; those of its colours that are too pale for a line on white are darker here.
_COLOURS = ("#0072B2", "#D55E00", "#007A5A", "#A6517F", "#000000", "#8C6900", "#5E4FA2", "#8B1A1A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_ZERO_SHOT: Mapping[str, Any] = {"color": "#555555", "linestyle": (0, (4, 2)), "marker": ""}
_DPI = 100


def styles(paired: Paired) -> dict[Contestant | None, Mapping[str, Any]]:
    """Return how each contestant is drawn; no two of the first forty look alike."""
    found: dict[Contestant | None, Mapping[str, Any]] = {None: _ZERO_SHOT}
    at = 0
    for contestant in paired.contestants:
        if contestant.method == ZERO_SHOT and len(paired.backbones) == 1:
            found[contestant] = _ZERO_SHOT
            continue
        found[contestant] = {
            "color": _COLOURS[at % len(_COLOURS)],
            "marker": _MARKERS[at % len(_MARKERS)],
            "linestyle": _LINES[at // len(_COLOURS) % len(_LINES)],
        }
        at += 1
    return found


def places_of(shots: Sequence[int]) -> list[int]:
    """Return where on an axis numbers of shots stand, ascending: all images as a doubling more."""
    counted = [count for count in shots if count != ALL_SHOTS]
    return counted + [2 * max(counted, default=1)] * (len(shots) - len(counted))


def accuracy_figure(paired: Paired, found: Sequence[Average]) -> Figure:
    """Return the figure of average accuracy over shots, a line a contestant.

    A line joins only averages over the same data sets.

    Raises:
        InputError: matplotlib is not installed.
    """
    order = list(dict.fromkeys(average.contestant for average in found))
    figure = _figure(7.4, max(4.4, 1.0 + 0.24 * len(order)))
    axes = figure.add_subplot()
    drawn = styles(paired)
    members = [
        tuple(np.flatnonzero(~np.isnan(paired.accuracy[0, :, at]).all(axis=1)))
        for at in range(len(paired.shots))
    ]
    at_x = places_of(paired.shots)
    for place, contestant in enumerate(order):
        values = [average.average for average in found if average.contestant == contestant]
        y = [100 * value.mean for value in values]
        width = 2.2 if contestant == paired.baseline else 1.4
        for group in dict.fromkeys(members):
            chosen = [at for at, other in enumerate(members) if other == group]
            axes.plot(
                [at_x[at] for at in chosen],
                [y[at] for at in chosen],
                label=title_of(contestant) if group == members[0] else "_",
                markersize=5,
                linewidth=width,
                zorder=4 if contestant == paired.baseline else 3 - place / 100,
                **_visible(drawn[contestant], len(chosen)),
            )
    axes.set_xscale("log", base=2)
    axes.set_xlim(at_x[0] / 1.25, at_x[-1] * 1.25)
    axes.set_xticks(at_x, list(map(shots_text, paired.shots)))
    axes.minorticks_off()
    axes.set_xlabel("shots")
    axes.set_ylabel("test accuracy, %")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    sizes = [str(len(member)) for member in dict.fromkeys(members)]
    plural = "s" * (sizes != ["1"])
    axes.set_title(
        f"{', '.join(paired.backbones)}: average over {', then '.join(sizes)} data set{plural}",
        fontsize=11,
    )
    # The order of the legend is that of the lines at the most shots.
    handles, labels = axes.get_legend_handles_labels()
    last = {title_of(a.contestant): a.average.mean for a in found if a.shots == paired.shots[-1]}
    best = sorted(range(len(labels)), key=lambda at: -last[labels[at]])
    figure.legend(
        [handles[at] for at in best],
        [labels[at] for at in best],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=3,
    )
    return figure


def _visible(style: Mapping[str, Any], points: int) -> Mapping[str, Any]:
    """A line of one point without a marker would not be seen."""
    return {**style, "marker": "_"} if points == 1 and not style["marker"] else style


def critical_difference_figure(ranking: Ranking) -> Figure:
    """Return Demsar's diagram: mean ranks on a line, bars below joining what does not differ.

    Raises:
        InputError: matplotlib is not installed.
    """
    count = len(ranking.contestants)
    bars = cliques(ranking.mean_ranks, ranking.critical_difference)
    left = math.ceil(count / 2)
    step, above = 0.30, 0.75
    below = 0.20 + 0.16 * len(bars)
    height = above + below + step * left + 0.15
    figure = _figure(7.4, height, layout=None)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    # Heights are in inches, so that text and bars keep their distances whatever the count is.
    axes.set_ylim(-(height - above), above)
    titles = [contestant.title for contestant in ranking.contestants]
    shares = [_share(titles[:left]), _share(titles[left:])]
    wide = (count - 1) / (1 - sum(shares))
    margins = [share * wide for share in shares]
    axes.set_xlim(1 - margins[0], count + margins[1])
    _axis(axes, count, ranking.critical_difference)
    for at, (first, last) in enumerate(bars):
        y = -0.16 - 0.16 * at
        ends = ranking.mean_ranks[first], ranking.mean_ranks[last]
        aside = 0.004 * wide
        axes.plot(
            [ends[0] - aside, ends[1] + aside],
            [y, y],
            color="#D55E00",
            linewidth=4,
            solid_capstyle="butt",
            gid=f"clique {first} {last}",
            zorder=3,
        )
    for at, (contestant, rank) in enumerate(
        zip(ranking.contestants, ranking.mean_ranks, strict=True)
    ):
        on_left = at < left
        y = -below - step * (at if on_left else count - 1 - at) - 0.12
        end = 1 - 0.012 * wide if on_left else count + 0.012 * wide
        axes.plot([rank, rank, end], [0, y, y], color="black", linewidth=0.9, zorder=2)
        text = f"{contestant.title}  {rank:.2f}" if on_left else f"{rank:.2f}  {contestant.title}"
        axes.text(
            1 - 0.02 * wide if on_left else count + 0.02 * wide,
            y,
            text,
            ha="right" if on_left else "left",
            va="center",
            fontsize=9,
        )
    return figure


def _share(titles: Sequence[str]) -> float:
    """Return the share of the width that labels of these titles and their ranks take."""
    return min(0.4, 0.10 + 0.0093 * max(map(len, titles)))


def _axis(axes: Axes, count: int, difference: float) -> None:
    axes.plot([1, count], [0, 0], color="black", linewidth=1.2)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, 0.07], color="black", linewidth=1.2)
        axes.text(rank, 0.11, str(rank), ha="center", va="bottom", fontsize=9)
    end = 1 + difference
    shown = min(end, count)
    axes.plot([1, shown], [0.42, 0.42], color="black", linewidth=1.2)
    for place in (1, shown) if end <= count else (1,):
        axes.plot([place, place], [0.38, 0.46], color="black", linewidth=1.2)
    wide = "" if end <= count else ", wider than all ranks"
    axes.text(
        (1 + shown) / 2,
        0.48,
        f"critical difference {difference:.2f}{wide}",
        ha="center" if shown - 1 > 0.4 * (count - 1) else "left",
        va="bottom",
        fontsize=9,
    )


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "The figures need matplotlib, which is not installed: pip install 'safe-ray[plots]'."
        ) from error
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure
