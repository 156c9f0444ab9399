"""A benchmark in the form in which the field prints few-shot results.

One table a method; its rows are numbers of shots, its columns data sets, their average last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safe_ray.errors import InputError
from safe_ray.report.cells import minus_zero_shot
from safe_ray.report.intervals import Interval
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.published import Beside, Reference, beside
from safe_ray.report.rows import Row, summarise, titles_of
from safe_ray.report.summary import ZERO_SHOT, TaskResult, TestResult, in_order
from safe_ray.specs import Metric, Task

ZERO_SHOT_TITLE = "zero-shot"


@dataclass(frozen=True)
class FieldRow:
    """A method's accuracies at one number of shots.

    Attributes:
        shots: labelled training images a class.
        cells: one a data set, over its seeds, in [0, 1]; None where it was not run.
        average: seed by seed over the data sets that all methods have; None if that is only one.
        averaged: these data sets; none without an average.
    """

    shots: int
    cells: tuple[Interval | None, ...]
    average: Interval | None
    averaged: tuple[str, ...]


@dataclass(frozen=True)
class FieldTable:
    """One method's table: `rows[i].cells[j]` belongs to `datasets[j]`.

    Attributes:
        title: what it is called.
        method: the method's name.
        metric: what its accuracies are.
        difference: whether they are differences to zero-shot, in [-1, 1].
        datasets: the columns.
        rows: one a number of shots.
    """

    title: str
    method: str
    metric: Metric
    difference: bool
    datasets: tuple[str, ...]
    rows: tuple[FieldRow, ...]

    @property
    def is_accuracy(self) -> bool:
        """Whether it has what others publish and a figure shows."""
        return self.metric == "accuracy" and not self.difference


@dataclass(frozen=True)
class Benchmark:
    """What is reported.

    Attributes:
        name: of the benchmark.
        backbone: its name; "" if it is not known.
        results: of all tasks and methods.
        datasets: the order of the columns; data sets without results are left out, and those that
            it does not name follow in alphabetical order.
        reference: published figures to print beside these, or None.
        outcomes: which test images were right, if that is known; see `summarise`.
    """

    name: str
    backbone: str
    results: tuple[TaskResult, ...]
    datasets: tuple[str, ...] = ()
    reference: Reference | None = None
    outcomes: Outcomes | None = None

    def columns(self) -> tuple[str, ...]:
        """Return the data sets that have results, in their order."""
        there = {result.dataset for result in self.results}
        named = [name for name in self.datasets if name in there]
        return (*named, *sorted(there - set(named)))


def field_tables(benchmark: Benchmark) -> tuple[FieldTable, ...]:
    """Return the tables: first that of zero-shot, then four kinds, each with a table a method.

    These are accuracy, its difference to zero-shot, mean per class accuracy, and its difference.

    Raises:
        InputError: there is no result, or two of a method for the same task.
    """
    _check_distinct(benchmark.results)
    results = _with_zero_shot(benchmark.results)
    datasets = benchmark.columns()
    metrics: tuple[Metric, ...] = ("accuracy", "mean_per_class")
    found = {metric: summarise(results, metric, benchmark.outcomes) for metric in metrics}

    def table(method: str, title: str, metric: Metric, difference: bool) -> FieldTable:
        rows = [row for row in found[metric] if row.method == method]
        body = tuple(_field_rows(rows, datasets, difference))
        return FieldTable(title, method, metric, difference, datasets, body)

    titles = {name: title for name, title in titles_of(results).items() if name != ZERO_SHOT}
    tables = [table(ZERO_SHOT, ZERO_SHOT_TITLE, "accuracy", False)]
    for metric in metrics:
        ending = "" if metric == "accuracy" else ", mean per class"
        tables += [table(name, title + ending, metric, False) for name, title in titles.items()]
        tables += [
            table(name, minus_zero_shot(title) + ending, metric, True)
            for name, title in titles.items()
        ]
    return tuple(tables)


def _field_rows(
    rows: Sequence[Row], datasets: Sequence[str], difference: bool
) -> Iterator[FieldRow]:
    """Yield one method's rows of a table."""
    by_place = {(row.dataset, row.shots): row for row in rows if not row.is_average}
    averages = {row.shots: row for row in rows if row.is_average}

    def value(row: Row | None) -> Interval | None:
        if row is None:
            return None
        return row.gain if difference else row.accuracy

    for shots in sorted({shots for _, shots in by_place}):
        average = averages.get(shots)
        yield FieldRow(
            shots=shots,
            cells=tuple(value(by_place.get((dataset, shots))) for dataset in datasets),
            average=value(average),
            averaged=() if average is None else average.averaged,
        )


def _check_distinct(results: Sequence[TaskResult]) -> None:
    if not results:
        raise InputError("There is no result to report: name the folder of a sweep that has ended.")
    found = Counter(
        (result.dataset, result.shots, result.seed, result.method) for result in results
    )
    (dataset, shots, seed, method), count = found.most_common(1)[0]
    if count > 1:
        raise InputError(
            f"There are {count} results for the task {Task(dataset, shots, seed).id} by the method "
            f"{method}: name sweeps that have no task and method in common."
        )


def _with_zero_shot(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Return the results with zero-shot in every task, which each method has measured."""
    first: dict[tuple[str, int, int], TaskResult] = {}
    for result in results:
        first.setdefault((result.dataset, result.shots, result.seed), result)
    added = [
        replace(
            result,
            method=ZERO_SHOT,
            title=ZERO_SHOT_TITLE,
            test=_untouched(result.test),
            targets={name: _untouched(target) for name, target in result.targets.items()},
        )
        for result in first.values()
    ]
    return [*(result for result in results if result.method != ZERO_SHOT), *added]


def _untouched(test: TestResult) -> TestResult:
    return TestResult(
        accuracy={ZERO_SHOT: test.accuracy[ZERO_SHOT]},
        mean_per_class={ZERO_SHOT: test.mean_per_class[ZERO_SHOT]},
        ece={ZERO_SHOT: test.ece[ZERO_SHOT]},
        samples=test.samples,
    )


def shifted(results: Sequence[TaskResult]) -> dict[str, tuple[TaskResult, ...]]:
    """Return, for every data set whose heads were tested elsewhere, results with targets as tests.

    The `dataset` of what is returned is the target, so that an average is over targets.
    """
    found: dict[str, list[TaskResult]] = {}
    for result in in_order(results):
        for target, test in result.targets.items():
            found.setdefault(result.dataset, []).append(replace(result, dataset=target, test=test))
    return {source: tuple(members) for source, members in found.items()}


def published_beside(benchmark: Benchmark, tables: Sequence[FieldTable]) -> list[Beside]:
    """Return what of the benchmark's reference stands beside it, one a number of shots."""
    reference = benchmark.reference
    if reference is None or benchmark.backbone not in ("", reference.backbone):
        return []
    zero_shot = tables[0]
    found = []
    for row in zero_shot.rows:
        cells = zip(zero_shot.datasets, row.cells, strict=True)
        run = [name for name, cell in cells if cell is not None]
        found.append(beside(reference, row.shots, run, row.averaged))
    return [at for at in found if at is not None]
