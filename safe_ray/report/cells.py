"""A table's columns and cells as text, and the notes below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from safe_ray.report.intervals import Interval, interval_note, seeds_in_words
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.rows import Row, count_not_shown, gaining, summarise, titles_of
from safe_ray.report.summary import ZERO_SHOT, TaskResult
from safe_ray.specs import shots_text

WINNERS = (
    "Winners were chosen by: coop, a few validation samples a class; cross, cross-validation on "
    "the support samples; full, the whole validation split;{held_out} never by a test sample. They "
    "were chosen for the metric, or by the rule of search.choose_by that is named."
)
HELD_OUT = " held_out, a fifth of the training images;"
ACCURACY = "Accuracy over all test images"
PER_CLASS = "Mean per class accuracy: the mean over the classes of the accuracy in each"
NOT_SHOWN = "!"
"""Marks the row of a task whose validation samples do not show a gain."""
NOTHING = "-"

Column = tuple[str, Callable[[Row], str]]


@dataclass(frozen=True)
class Section:
    """One table: its title ("" for none), and for every row its cells.

    Attributes:
        title: what is above it.
        rows: what the cells are of.
        cells: `cells[i]` belongs to `rows[i]`, in the order of the columns.
    """

    title: str
    rows: tuple[Row, ...]
    cells: tuple[tuple[str, ...], ...]


def minus_zero_shot(title: str) -> str:
    """Return what the difference between a method of that title and zero-shot is called."""
    return f"{title} minus zero-shot"


def per_cent(interval: Interval | None, signed: bool = False) -> str:
    """Return the mean with half of its interval, in per cent, or `NOTHING`."""
    if interval is None:
        return NOTHING
    mean = f"{100 * interval.mean:+.1f}" if signed else f"{100 * interval.mean:.1f}"
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.1f}"


def columns_of(results: Sequence[TaskResult]) -> tuple[Column, ...]:
    """Return the columns of the table of these results, each with what it says of a row.

    A single method's name stands above its accuracies, those of several in a column of their own.
    """
    titles = titles_of(results)
    first: list[Column] = [
        ("data set", lambda row: row.dataset),
        ("shots", lambda row: shots_text(row.shots)),
        ("seeds", lambda row: seeds_in_words(row.seeds)),
        ("chosen by", lambda row: row.selection),
    ]
    zero_shot: Column = ("zero-shot", lambda row: per_cent(row.zero_shot))
    if set(titles) <= {ZERO_SHOT}:
        return (*first, zero_shot)
    if len(titles) == 1:
        (title,) = titles.values()
        return (
            *first,
            zero_shot,
            (title, lambda row: per_cent(row.accuracy)),
            (minus_zero_shot(title), _gain),
        )
    return (
        *first,
        ("method", lambda row: titles[row.method]),
        zero_shot,
        ("accuracy", lambda row: per_cent(row.accuracy)),
        ("minus zero-shot", _gain),
    )


def _gain(row: Row) -> str:
    return f"{NOT_SHOWN} " * (row.not_shown > 0) + per_cent(row.gain, signed=True)


def sections(results: Sequence[TaskResult], outcomes: Outcomes | None = None) -> list[Section]:
    """Return the table of accuracy and, where it differs, that of mean per class accuracy.

    The metric that all winners were chosen by comes first.
    """
    columns = columns_of(results)
    plain, per_class = summarise(results), summarise(results, "mean_per_class")
    rows = plain if outcomes is None else summarise(results, "accuracy", outcomes)
    first = _section("", rows, columns)
    second = _section(PER_CLASS, per_class, columns)
    # Intervals of two kinds differ where the accuracies do not.
    if _section("", plain, columns).cells == second.cells:
        return [first]
    if {result.protocol.metric for result in results} == {"mean_per_class"}:
        return [second, replace(first, title=ACCURACY)]
    return [first, second]


def _section(title: str, rows: Sequence[Row], columns: Sequence[Column]) -> Section:
    cells = tuple(tuple(text(row) for _, text in columns) for row in rows)
    return Section(title, tuple(rows), cells)


def not_shown_line(results: Sequence[TaskResult]) -> str:
    """Return a sentence on the tasks whose validation samples show no gain, or "" if all do."""
    count = count_not_shown(results)
    if not count:
        return ""
    able = gaining(results)
    several = len({result.method for result in able}) > 1
    what = "result" if several else "task"
    return (
        f"In {count} of {len(able)} {what}{'s' * (len(able) != 1)} the validation samples do "
        "not show a gain over zero-shot beyond chance (sign test on the samples that only one of "
        "the two gets right, 5%, one-sided)."
        + " search.cautious=true has put zero-shot in their place."
        * _is_cautious(able)
    )


def _is_cautious(results: Sequence[TaskResult]) -> bool:
    return all(r.protocol.cautious for r in results if not r.validation.gain_shown)


def notes(results: Sequence[TaskResult], parts: Sequence[Section]) -> list[str]:
    """Return what stands under the tables of these results, a line each."""
    rows = [row for part in parts for row in part.rows]
    note = interval_note(i for row in rows for i in (row.zero_shot, row.accuracy, row.gain))
    not_shown = not_shown_line(results)
    held_out = any(result.protocol.selection == "held_out" for result in results)
    winners = WINNERS.format(held_out=HELD_OUT * held_out)
    return [f"{note} {winners}", *([f"{NOT_SHOWN} {not_shown}"] if not_shown else [])]
