"""The comparison as tables: as Markdown, and as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from safe_ray.comparison.analysis import Average, Difference, Ranking
from safe_ray.comparison.pairing import ZERO_SHOT, Contestant, Paired
from safe_ray.comparison.statistics import RESAMPLES
from safe_ray.report.intervals import WHY_NO_INTERVAL, Interval
from safe_ray.report.published import Reference
from safe_ray.specs import ALL_SHOTS, shots_in_words, shots_text

NOTHING = "-"
UNTOUCHED = "untouched model"
CHOSEN_ON_TEST = "†"
NOT_KNOWN = "?"
SECOND_HAND = "*"

MEANS_NOTE = (
    "Test accuracy in per cent, mean over data sets and seeds ± half of the 95% interval over "
    f"seeds (Student's t). {WHY_NO_INTERVAL}"
)


@dataclass(frozen=True)
class Table:
    """A table of text: its first column is left-aligned, the others are right-aligned."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> Iterator[str]:
        """Yield the lines of GitHub's Markdown."""
        yield from (f"## {self.title}", "")
        yield _line(self.columns)
        yield "|:--" + "|--:" * (len(self.columns) - 1) + "|"
        yield from map(_line, self.rows)
        yield ""
        for note in self.notes:
            yield from (note, "")

    def text(self) -> Iterator[str]:
        """Yield the lines for a terminal."""
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        yield from (self.title, "")
        for line in lines:
            first, *others = (
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            yield "  ".join([f"  {first}", *others]).rstrip()
        yield ""
        for note in self.notes:
            yield from (note, "")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def title_of(contestant: Contestant | None) -> str:
    """Return what tables call a contestant, None being the untouched model."""
    return UNTOUCHED if contestant is None else contestant.title


def shown(paired: Paired, found: Sequence[Average]) -> list[Average]:
    """Leave out the untouched model where a contestant is the same."""
    if any(contestant.method == ZERO_SHOT for contestant in paired.contestants):
        return [average for average in found if average.contestant is not None]
    return list(found)


def _per_cent(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    mean = f"{100 * interval.mean:.1f}"
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.1f}"


def means_table(paired: Paired, found: Sequence[Average]) -> Table:
    """Return the table of methods over shots."""
    rows = [
        (
            title_of(contestant),
            *(_per_cent(average.average) for average in found if average.contestant == contestant),
        )
        for contestant in dict.fromkeys(average.contestant for average in found)
    ]
    sizes = [average.datasets for average in found if average.contestant == paired.baseline]
    rows.append(("data sets", *map(str, sizes)))
    columns = ("shots", *map(shots_text, paired.shots))
    return Table("Accuracy over shots", columns, tuple(rows), (MEANS_NOTE,))


def dataset_tables(paired: Paired, found: Sequence[Average]) -> list[Table]:
    """Return a table of methods over data sets for each number of shots."""
    tables = []
    for shots in paired.shots:
        here = [average for average in found if average.shots == shots]
        has = [at for at, cell in enumerate(here[0].cells) if cell is not None]
        rows = tuple(
            (
                title_of(average.contestant),
                *(_per_cent(average.cells[at]) for at in has),
                _per_cent(average.average),
            )
            for average in here
        )
        names = tuple(paired.datasets[at] for at in has)
        title = f"Accuracy at {shots_in_words(shots)}"
        tables.append(Table(title, ("method", *names, "average"), rows))
    return tables


def differences_table(paired: Paired, found: Sequence[Difference]) -> Table:
    """Return the table of differences to the baseline."""
    rows = tuple(
        (
            difference.contestant.title,
            _shots(difference.shots),
            f"{100 * difference.mean:+.2f}",
            _interval(difference.interval),
            _p_value(difference.p),
            _p_value(difference.p_holm),
            str(difference.datasets),
            str(difference.pairs),
        )
        for difference in found
    )
    columns = ("method", "shots", "points", "95% interval", "p", "p, Holm", "data sets", "pairs")
    return Table(
        f"Difference to {paired.baseline.title}", columns, rows, tuple(_difference_notes(found))
    )


def _shots(shots: int | None) -> str:
    """Return what a difference is over: `all` numbers of shots together, or one of them."""
    if shots is None:
        return "all"
    return shots_in_words(shots) if shots == ALL_SHOTS else str(shots)


def _interval(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return NOTHING
    low, high = interval
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def _p_value(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _difference_notes(found: Sequence[Difference]) -> Iterator[str]:
    yield (
        "Points are paired by task: the mean over data sets of the mean over shots of the mean "
        "over seeds."
    )
    levels = list(dict.fromkeys(difference.levels for difference in found if difference.levels))
    if levels:
        yield (
            f"Intervals are percentiles of {RESAMPLES} bootstrap resamples of "
            f"{', or '.join(levels)}; test images are not drawn, since accuracies alone do not "
            "say which images two methods both get right."
        )
    if any(difference.interval is None for difference in found):
        yield "There is no interval where there are fewer than three data sets and three seeds."
    fewest = min(difference.datasets for difference in found)
    text = (
        "p is of Wilcoxon's signed-rank test over data sets (two-sided, exact), each data set "
        "counting once with its mean over shots and seeds; Holm's correction is for the number of "
        "methods in each line's shots."
    )
    if 2.0 ** (1 - fewest) > 0.05:
        text += f" With {fewest} data sets no p can be below {min(1.0, 2.0 ** (1 - fewest)):.4f}."
    yield text


def ranking_table(found: Ranking) -> Table:
    """Return the table of mean ranks."""
    rows = tuple(
        (contestant.title, f"{rank:.2f}")
        for contestant, rank in zip(found.contestants, found.mean_ranks, strict=True)
    )
    test = found.test
    notes = (
        f"Rank 1 is the highest accuracy; means over {found.blocks} blocks, a block being a data "
        "set at one number of shots, averaged over seeds. Blocks of one data set are not "
        "independent, so that the tests are too sure of themselves with several shots.",
        f"Friedman's chi-square is {test.statistic:.2f} (p {_p_value(test.p)}), Iman and "
        f"Davenport's F {test.f_statistic:.2f} (p {_p_value(test.f_p)}). By Nemenyi's test two "
        f"methods differ at 5% if their mean ranks are {found.critical_difference:.2f} apart "
        "(Demsar 2006).",
    )
    return Table("Mean ranks", ("method", "mean rank"), rows, notes)


def published_table(paired: Paired, found: Sequence[Average], figures: Reference) -> Table | None:
    """Return published averages beside these, or None where none is over the same data sets."""
    same = []
    for at, shots in enumerate(paired.shots):
        there = np.flatnonzero(~np.isnan(paired.accuracy[0, :, at]).all(axis=1))
        run = [paired.datasets[place] for place in there]
        if shots in figures.shots and set(run) == set(figures.datasets):
            same.append(shots)
    if not same:
        return None
    notes: list[str] = []
    rows: list[tuple[str, ...]] = []
    for method in sorted(figures.methods, key=lambda method: method.prompts == "descriptions"):
        values = [method.average(shots) for shots in same]
        if all(value is None for value in values):
            continue
        notes.append(f"{len(rows) + 1}. {method.method}: {method.source}. {method.protocol}")
        marks = {True: CHOSEN_ON_TEST, None: NOT_KNOWN, False: ""}[method.chosen_on_test]
        marks += SECOND_HAND * (method.checked == "second_hand")
        cells = (NOTHING if value is None else f"{value:.2f}" for value in values)
        rows.append((f"{method.method}{marks} [{len(rows) + 1}]", method.prompts, *cells))
    for contestant in dict.fromkeys(average.contestant for average in found):
        ours = {a.shots: a.average for a in found if a.contestant == contestant}
        cells = (_per_cent(ours[shots]) for shots in same)
        rows.append((f"{title_of(contestant)}, these sweeps", NOTHING, *cells))
    legend = (
        f"{CHOSEN_ON_TEST} Something was chosen by test accuracy. {NOT_KNOWN} It is not known "
        f"whether something was. {SECOND_HAND} Quoted by others than the authors. Prompts: "
        "templates are fixed sentences around the class name; descriptions are sentences about "
        "each class that a language model wrote, and compare with their like alone."
    )
    columns = ("method", "prompts", *map(str, same))
    return Table("Beside published averages", columns, tuple(rows), (legend, *notes))
