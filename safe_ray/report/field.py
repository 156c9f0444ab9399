"""A benchmark in the form in which the field prints few-shot results.

One table a method; its rows are numbers of shots, its columns data sets, their average last. Every
table says how the winners were chosen. Published figures stand in a table of their own, beside
those of the sweep at the same number of shots.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from safe_ray.errors import InputError
from safe_ray.report.intervals import WHY_NO_INTERVAL, Interval, seeds_in_words
from safe_ray.report.summary import Protocol, TaskResult, in_order
from safe_ray.report.tables import AVERAGE, Row, not_shown_line, summarise
from safe_ray.specs import Metric, Task

ZERO_SHOT = "zero-shot"
TUNED_ONLY = "tuned only"
SAFE = "SAFE"
GAIN = "SAFE minus zero-shot"
SAFE_PER_CLASS = "SAFE, mean per class"
GAIN_PER_CLASS = "SAFE minus zero-shot, mean per class"
METHODS: Mapping[str, tuple[Metric, Callable[[Row], Interval]]] = {
    ZERO_SHOT: ("accuracy", lambda row: row.zero_shot),
    TUNED_ONLY: ("accuracy", lambda row: row.tuned_only),
    SAFE: ("accuracy", lambda row: row.safe),
    GAIN: ("accuracy", lambda row: row.gain),
    SAFE_PER_CLASS: ("mean_per_class", lambda row: row.safe),
    GAIN_PER_CLASS: ("mean_per_class", lambda row: row.gain),
}
SIGNED = frozenset({GAIN, GAIN_PER_CLASS})
PUBLISHED = frozenset({ZERO_SHOT, TUNED_ONLY, SAFE})
"""What stands beside published figures, which are accuracies."""

NOTHING = "-"
CHOSEN_ON_TEST = "†"
NOTE = (
    "Test accuracy in per cent, mean over seeds ± half of the 95% interval (Student's t); "
    f"differences are paired by seed. {WHY_NO_INTERVAL}"
)
UNBIASED = "nothing was chosen on a test image"

CSV_COLUMNS = (
    "method",
    "dataset",
    "shots",
    "seeds",
    "accuracy",
    "half_width",
    "averaged_datasets",
    "selection",
    "metric",
    "convention",
    "prompts",
    "chosen_on_test",
    "source",
)

_EXPLAINED: Mapping[str, Mapping[str, str]] = {
    "selection": {
        "coop": "on a few validation images a class, at most four",
        "cross": "by cross-validation on the support images alone",
        "full": "on the whole validation split, which is far more labels than the shots are",
    },
    "metric": {
        "accuracy": "for their accuracy",
        "mean_per_class": "for their mean per class accuracy",
    },
    "convention": {
        "coop": "drawn as CoOp draws them",
        "clip_lora": "drawn as CLIP-LoRA draws them, validation images first",
        "tip_adapter": "drawn as Tip-Adapter draws them, with repetition in small classes",
    },
    "prompts": {
        "single": "the data set's own templates",
        "ensemble": "the data set's ensemble of templates",
        "descriptions": "sentences about each class",
    },
}


@dataclass(frozen=True)
class FieldRow:
    """A method's accuracies at one number of shots.

    Attributes:
        shots: labelled training images a class.
        cells: one a data set, over its seeds, in [0, 1]; None where it was not run.
        average: over the data sets that were run, seed by seed; None if it was only one.
        averaged: how many data sets were run.
    """

    shots: int
    cells: tuple[Interval | None, ...]
    average: Interval | None
    averaged: int


@dataclass(frozen=True)
class FieldTable:
    """One method's table: `rows[i].cells[j]` belongs to `datasets[j]`."""

    method: str
    datasets: tuple[str, ...]
    rows: tuple[FieldRow, ...]


@dataclass(frozen=True)
class Published:
    """What others have published of one method.

    Attributes:
        method: its name.
        source: where the figures stand.
        protocol: how they were obtained, as far as the source says.
        chosen_on_test: whether anything was chosen by test accuracy.
        accuracies: by data set, in per cent, as printed; there may be none.
        average: over the reference's data sets, in per cent.
    """

    method: str
    source: str
    protocol: str
    chosen_on_test: bool
    accuracies: Mapping[str, float]
    average: float | None


@dataclass(frozen=True)
class Reference:
    """Published figures for one backbone and number of shots, averaged over the same data sets."""

    backbone: str
    shots: int
    datasets: tuple[str, ...]
    methods: tuple[Published, ...]


@dataclass(frozen=True)
class Benchmark:
    """What is reported.

    Attributes:
        name: of the benchmark.
        backbone: its name; "" if it is not known.
        results: of all tasks.
        datasets: the order of the columns; data sets without results are left out, and those that
            it does not name follow in alphabetical order.
        reference: published figures to print beside these, or None.
    """

    name: str
    backbone: str
    results: tuple[TaskResult, ...]
    datasets: tuple[str, ...] = ()
    reference: Reference | None = None

    def columns(self) -> tuple[str, ...]:
        """Return the data sets that have results, in their order."""
        there = {result.dataset for result in self.results}
        named = [name for name in self.datasets if name in there]
        return (*named, *sorted(there - set(named)))


def field_tables(benchmark: Benchmark) -> tuple[FieldTable, ...]:
    """Return a table for every method of `METHODS`.

    Raises:
        InputError: there is no result, or two for the same task.
    """
    _check_distinct(benchmark.results)
    datasets = benchmark.columns()
    tables = []
    for method, (metric, value) in METHODS.items():
        rows = summarise(benchmark.results, metric)
        by_place = {(row.dataset, row.shots): row for row in rows if not row.is_average}
        averages = {row.shots: row for row in rows if row.is_average}
        body = []
        for shots in sorted({shots for _, shots in by_place}):
            found = [by_place.get((dataset, shots)) for dataset in datasets]
            average = averages.get(shots)
            body.append(
                FieldRow(
                    shots=shots,
                    cells=tuple(None if row is None else value(row) for row in found),
                    average=None if average is None else value(average),
                    averaged=sum(row is not None for row in found),
                )
            )
        tables.append(FieldTable(method, datasets, tuple(body)))
    return tuple(tables)


def _check_distinct(results: Sequence[TaskResult]) -> None:
    if not results:
        raise InputError("There is no result to report: name the folder of a sweep that has ended.")
    tasks = Counter((result.dataset, result.shots, result.seed) for result in results)
    (dataset, shots, seed), count = tasks.most_common(1)[0]
    if count > 1:
        raise InputError(
            f"There are {count} results for the task {Task(dataset, shots, seed).id}: name "
            "sweeps that have no task in common."
        )


def selection_line(results: Sequence[TaskResult]) -> str:
    """Return how the winners of these results were chosen, in one line."""
    parts = []
    for key in _EXPLAINED:
        parts.append(f"{key}: {' and '.join(_values(results, key))}")
    return f"{'; '.join(parts)}; {UNBIASED}."


def _values(results: Sequence[TaskResult], key: str) -> list[str]:
    return sorted({str(getattr(result.protocol, key)) for result in results})


def protocol_lines(results: Sequence[TaskResult]) -> list[str]:
    """Return a sentence for every protocol among the results, with its data sets if it matters."""
    groups: dict[tuple[str, ...], list[TaskResult]] = {}
    for result in in_order(results):
        groups.setdefault(_key(result.protocol), []).append(result)
    lines = []
    for members in groups.values():
        protocol = members[0].protocol
        sizes = [member.protocol.validation_samples for member in members]
        images = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        where = f" of {_places(members)}" if len(groups) > 1 else ""
        lines.append(
            f"The learning rate, the weight decay, the epochs and alpha of every task{where} were "
            f"chosen {_explained('metric', protocol)} {_explained('selection', protocol)} "
            f"(`{protocol.selection}`; {images} images a task). Samples are "
            f"{_explained('convention', protocol)} (`{protocol.convention}`); prompts are "
            f"{_explained('prompts', protocol)} (`{protocol.prompts}`)."
        )
    return lines


def _places(results: Sequence[TaskResult]) -> str:
    shots: dict[str, dict[str, None]] = {}
    for result in results:
        shots.setdefault(result.dataset, {})[str(result.shots)] = None
    return ", ".join(f"{name} (shots: {', '.join(found)})" for name, found in shots.items())


def _key(protocol: Protocol) -> tuple[str, ...]:
    return tuple(str(getattr(protocol, key)) for key in _EXPLAINED)


def _explained(key: str, protocol: Protocol) -> str:
    value = str(getattr(protocol, key))
    return _EXPLAINED[key].get(value, f"by {value}")


def markdown(benchmark: Benchmark, figure: str | None = None) -> str:
    """Return the whole report as GitHub's Markdown.

    Args:
        benchmark: what is reported.
        figure: name of the figure's file beside the text, or None.

    Raises:
        InputError: see `field_tables`.
    """
    tables = field_tables(benchmark)
    title = f"# Benchmark {benchmark.name}" + (f", {benchmark.backbone}" * bool(benchmark.backbone))
    protocol = protocol_lines(benchmark.results)
    lines = [title, "", NOTE, "", *_joined(protocol), f"{UNBIASED.capitalize()}.", ""]
    lines += _joined(filter(None, [not_shown_line(benchmark.results)]))
    if figure:
        lines += [f"![accuracy over shots, a panel a data set]({figure})", ""]
    for table in tables:
        lines += [f"## {_capital(table.method)}", ""]
        lines += _table_lines(table, benchmark.results, table.method in SIGNED)
        lines += ["", f"_{_capital(selection_line(benchmark.results))}_", ""]
    lines += _target_lines(benchmark.results)
    lines += _reference_lines(benchmark, tables)
    return "\n".join(lines).rstrip("\n") + "\n"


def _joined(paragraphs: Iterable[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table_lines(table: FieldTable, results: Sequence[TaskResult], signed: bool) -> list[str]:
    complete = len(table.datasets)
    with_average = any(row.average is not None for row in table.rows)
    lines = _header(["shots", "seeds", *table.datasets, *([AVERAGE] * with_average)], left=0)
    for row in table.rows:
        counts = Counter(result.dataset for result in results if result.shots == row.shots)
        few, many = min(counts.values()), max(counts.values())
        cells = [str(row.shots), seeds_in_words(few) if few == many else f"{few} to {many}"]
        cells += [_per_cent(cell, signed) for cell in row.cells]
        if with_average:
            cells.append(_average_cell(row, complete, signed))
        lines.append(_line(cells))
    return lines


def _average_cell(row: FieldRow, complete: int, signed: bool) -> str:
    if row.average is None:
        return NOTHING
    text = f"**{_per_cent(row.average, signed)}**"
    return text if row.averaged == complete else f"{text} (of {row.averaged})"


def _header(names: Sequence[str], left: int = 1) -> list[str]:
    return [_line(names), "|" + "|".join([":--"] * left + ["--:"] * (len(names) - left)) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _per_cent(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return NOTHING
    mean = f"{100 * interval.mean:+.1f}" if signed else f"{100 * interval.mean:.1f}"
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.1f}"


def shifted(results: Sequence[TaskResult]) -> dict[str, tuple[TaskResult, ...]]:
    """Return, for every data set whose heads were tested elsewhere, results with targets as tests.

    The `dataset` of what is returned is the target, so that `summarise` averages over targets.
    """
    found: dict[str, list[TaskResult]] = {}
    for result in in_order(results):
        for target, test in result.targets.items():
            found.setdefault(result.dataset, []).append(replace(result, dataset=target, test=test))
    return {source: tuple(members) for source, members in found.items()}


def _target_lines(results: Sequence[TaskResult]) -> list[str]:
    lines: list[str] = []
    for source, members in shifted(results).items():
        tables = field_tables(Benchmark(source, "", members))
        lines += [f"## Heads of {source} on other test sets", ""]
        datasets = list(tables[0].datasets)
        several = len(datasets) > 1
        lines += _header(["method", "shots", *datasets, *([AVERAGE] * several)])
        for table in tables:
            for row in table.rows:
                cells = [*row.cells, *([row.average] * several)]
                signed = table.method in SIGNED
                lines.append(
                    _line([table.method, str(row.shots), *(_per_cent(c, signed) for c in cells)])
                )
        lines += [
            "",
            f"_Tuned and chosen on {source}, without a look at these sets. "
            f"{_capital(selection_line(members))}_",
            "",
        ]
    return lines


@dataclass(frozen=True)
class _Beside:
    """What of a reference can stand beside a benchmark.

    Attributes:
        datasets: that both have, in the benchmark's order.
        averages: whether both averages are over the same data sets.
    """

    reference: Reference
    datasets: tuple[str, ...]
    averages: bool

    def values(self, method: Published) -> list[float | None]:
        """Return a method's printed figures: one a data set, then the average if it compares."""
        found = [method.accuracies.get(name) for name in self.datasets]
        return [*found, *([method.average] * self.averages)]


def _beside(benchmark: Benchmark, tables: Sequence[FieldTable]) -> _Beside | None:
    reference = benchmark.reference
    if reference is None or benchmark.backbone not in ("", reference.backbone):
        return None
    row = _row_at(tables[0], reference)
    if row is None:
        return None
    run = [n for n, cell in zip(tables[0].datasets, row.cells, strict=True) if cell is not None]
    common = tuple(name for name in run if name in reference.datasets)
    # An average over other data sets would only look comparable.
    return _Beside(reference, common, set(run) == set(reference.datasets)) if common else None


def _row_at(table: FieldTable, reference: Reference) -> FieldRow | None:
    return next((row for row in table.rows if row.shots == reference.shots), None)


def _reference_lines(benchmark: Benchmark, tables: Sequence[FieldTable]) -> list[str]:
    beside = _beside(benchmark, tables)
    if beside is None:
        return []
    reference = beside.reference
    lines = [f"## Beside published figures, {reference.shots} shots", ""]
    lines += _header(["method", *beside.datasets, *([AVERAGE] * beside.averages)])
    notes: list[str] = []
    for method in reference.methods:
        values = beside.values(method)
        if any(value is not None for value in values):
            notes.append(f"{len(notes) + 1}. {method.method}: {method.source}. {method.protocol}")
            marker = CHOSEN_ON_TEST * method.chosen_on_test
            cells = map(_printed, values)
            lines.append(_line([f"{method.method}{marker} [{len(notes)}]", *cells]))
    for table in tables:
        row = _row_at(table, reference)
        if table.method in PUBLISHED and row is not None:
            ours = [row.cells[table.datasets.index(name)] for name in beside.datasets]
            ours += [row.average] * beside.averages
            lines.append(_line([f"**{table.method}**, this benchmark", *map(_per_cent, ours)]))
    lines += ["", f"{CHOSEN_ON_TEST} Something was chosen by the accuracy on the test split.", ""]
    if not beside.averages:
        lines += ["The published averages are over other data sets, and left out.", ""]
    return [*lines, *notes, "", f"_This benchmark: {selection_line(benchmark.results)}_", ""]


def _printed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def csv_text(benchmark: Benchmark) -> str:
    """Return all cells of the tables as CSV, one a line.

    Accuracies (for `SAFE minus zero-shot` their difference) are fractions in full precision.
    Published figures have a source.

    Raises:
        InputError: see `field_tables`.
    """
    tables = field_tables(benchmark)
    lines = [*_csv_lines(tables, benchmark.results, "")]
    for source, members in shifted(benchmark.results).items():
        name = f"heads of {source}"
        lines += _csv_lines(field_tables(Benchmark(source, "", members)), members, name)
    beside = _beside(benchmark, tables)
    if beside is not None:
        lines += _published_lines(beside)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _csv_lines(
    tables: Sequence[FieldTable], results: Sequence[TaskResult], source: str
) -> Iterator[dict[str, object]]:
    for table in tables:
        for row in table.rows:
            here = [result for result in results if result.shots == row.shots]
            cells = zip((*table.datasets, AVERAGE), (*row.cells, row.average), strict=True)
            for name, cell in cells:
                if cell is None:
                    continue
                members = [r for r in here if name in (AVERAGE, r.dataset)]
                yield {
                    "method": table.method,
                    "dataset": name,
                    "shots": row.shots,
                    "seeds": cell.count,
                    "accuracy": cell.mean,
                    "half_width": "" if cell.half_width is None else cell.half_width,
                    "averaged_datasets": row.averaged if name == AVERAGE else "",
                    **{key: "+".join(_values(members, key)) for key in _EXPLAINED},
                    "chosen_on_test": "false",
                    "source": source,
                }


def _published_lines(beside: _Beside) -> Iterator[dict[str, object]]:
    names = [*beside.datasets, *([AVERAGE] * beside.averages)]
    for method in beside.reference.methods:
        for name, value in zip(names, beside.values(method), strict=True):
            if value is not None:
                yield {
                    "method": method.method,
                    "dataset": name,
                    "shots": beside.reference.shots,
                    "accuracy": round(value / 100, 6),
                    "averaged_datasets": len(beside.reference.datasets) if name == AVERAGE else "",
                    "chosen_on_test": str(method.chosen_on_test).lower(),
                    "source": method.source,
                }
