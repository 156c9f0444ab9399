"""A benchmark as Markdown and as CSV.

Every table says how the winners were chosen. Published figures stand in tables of their own, beside
those of the benchmark at the same number of shots.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from safe_ray.report.cells import NOTHING, not_shown_line, per_cent
from safe_ray.report.field import (
    Benchmark,
    FieldRow,
    FieldTable,
    field_tables,
    published_beside,
    shifted,
)
from safe_ray.report.intervals import interval_note, seeds_in_words
from safe_ray.report.protocols import (
    EXPLAINED,
    UNBIASED,
    protocol_lines,
    selection_line,
    values_of,
)
from safe_ray.report.published import Beside, Published, Reference
from safe_ray.report.rows import AVERAGE
from safe_ray.report.summary import ZERO_SHOT, TaskResult

CHOSEN_ON_TEST = "†"
NOT_KNOWN = "?"
SEVERAL_METHODS = "An average is over the data sets and seeds that all methods have."

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

_MARKS = {True: CHOSEN_ON_TEST, False: "", None: NOT_KNOWN}
_MEANING = {
    CHOSEN_ON_TEST: "Something was chosen by the accuracy on the test split.",
    NOT_KNOWN: "Whether anything was chosen by the accuracy on the test split is not known.",
}


def markdown(benchmark: Benchmark, figure: str | None = None) -> str:
    """Return the whole report as GitHub's Markdown.

    Args:
        benchmark: what is reported.
        figure: name of the figure's file beside the text, or None.

    Raises:
        InputError: see `field_tables`.
    """
    results = benchmark.results
    tables = field_tables(benchmark)
    title = f"# Benchmark {benchmark.name}" + (f", {benchmark.backbone}" * bool(benchmark.backbone))
    several = len({table.method for table in tables} - {ZERO_SHOT}) > 1
    rows = [row for table in tables for row in table.rows]
    note = interval_note(cell for row in rows for cell in (*row.cells, row.average))
    if several:
        note = f"{note} {SEVERAL_METHODS}"
    protocol = protocol_lines(results)
    lines = [title, "", note, "", *_joined(protocol), f"{_capital(UNBIASED)}.", ""]
    lines += _joined(filter(None, [not_shown_line(results)]))
    if figure:
        lines += [f"![accuracy over shots, a panel a data set]({figure})", ""]
    for table in tables:
        lines += [f"## {_capital(table.title)}", "", *_table_lines(table), ""]
        lines += [f"_{_capital(selection_line(results))}_", ""]
    lines += _target_lines(results)
    lines += _reference_lines(benchmark, tables)
    return "\n".join(lines).rstrip("\n") + "\n"


def _joined(paragraphs: Iterable[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table_lines(table: FieldTable) -> list[str]:
    with_average = any(row.average is not None for row in table.rows)
    lines = _header(["shots", "seeds", *table.datasets, *([AVERAGE] * with_average)], left=0)
    for row in table.rows:
        counts = [cell.count for cell in row.cells if cell is not None]
        few, many = min(counts), max(counts)
        cells = [str(row.shots), seeds_in_words(few) if few == many else f"{few} to {many}"]
        cells += [per_cent(cell, table.difference) for cell in row.cells]
        if with_average:
            cells.append(_average_cell(row, len(table.datasets), table.difference))
        lines.append(_line(cells))
    return lines


def _average_cell(row: FieldRow, complete: int, signed: bool) -> str:
    if row.average is None:
        return NOTHING
    text = f"**{per_cent(row.average, signed)}**"
    return text if len(row.averaged) == complete else f"{text} (of {len(row.averaged)})"


def _header(names: Sequence[str], left: int = 1) -> list[str]:
    return [_line(names), "|" + "|".join([":--"] * left + ["--:"] * (len(names) - left)) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


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
                shown = (per_cent(cell, table.difference) for cell in cells)
                lines.append(_line([table.title, str(row.shots), *shown]))
        lines += [
            "",
            f"_Tuned and chosen on {source}, without a look at these sets. "
            f"{_capital(selection_line(members))}_",
            "",
        ]
    return lines


def _reference_lines(benchmark: Benchmark, tables: Sequence[FieldTable]) -> list[str]:
    """Return a table for every number of shots with published figures, then their sources."""
    found = published_beside(benchmark, tables)
    if not found:
        return []
    named = dict.fromkeys(method.method for at in found for method in at.methods)
    numbers = {name: number for number, name in enumerate(named, 1)}
    lines: list[str] = []
    marks: dict[str, None] = {}
    for at in found:
        lines += [f"## Beside published figures, {at.shots} shot{'s' * (at.shots != 1)}", ""]
        lines += _header(["method", *at.datasets, *([AVERAGE] * at.averages)])
        for method in at.methods:
            mark = _MARKS[method.chosen_on_test]
            marks[mark] = None
            name = f"{method.method}{mark} [{numbers[method.method]}]"
            lines.append(_line([name, *map(_printed, at.values(method))]))
        lines += _our_lines(at, tables)
        if not at.averages:
            lines += ["", "The published averages are over other data sets, and left out."]
        lines.append("")
    lines += _joined(f"{mark} {meaning}" for mark, meaning in _MEANING.items() if mark in marks)
    assert benchmark.reference is not None
    lines += _sources(benchmark.reference, numbers)
    return [*lines, "", f"_This benchmark: {selection_line(benchmark.results)}_", ""]


def _our_lines(at: Beside, tables: Sequence[FieldTable]) -> list[str]:
    lines = []
    for table in tables:
        row = next((row for row in table.rows if row.shots == at.shots), None)
        if table.is_accuracy and row is not None:
            ours = [row.cells[table.datasets.index(name)] for name in at.datasets]
            ours += [row.average] * at.averages
            lines.append(_line([f"**{table.title}**, this benchmark", *map(per_cent, ours)]))
    return lines


def _printed(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _sources(reference: Reference, numbers: dict[str, int]) -> list[str]:
    by_name = {method.method: method for method in reference.methods}
    return [f"{number}. {_source(by_name[name])}" for name, number in numbers.items()]


def _source(method: Published) -> str:
    text = f"{method.method}: {method.source}. {method.protocol}"
    if method.prompts == "descriptions":
        text += " Its prompts are sentences about each class, so compare it with the like."
    if method.checked == "second_hand":
        text += " These figures are quoted by others than its authors."
    return text


def csv_text(benchmark: Benchmark) -> str:
    """Return all cells of the tables as CSV, one a line.

    Accuracies (for `... minus zero-shot` their difference) are fractions in full precision.
    Published figures have a source.

    Raises:
        InputError: see `field_tables`.
    """
    tables = field_tables(benchmark)
    lines = [*_csv_lines(tables, benchmark.results, "")]
    for source, members in shifted(benchmark.results).items():
        name = f"heads of {source}"
        lines += _csv_lines(field_tables(Benchmark(source, "", members)), members, name)
    for at in published_beside(benchmark, tables):
        assert benchmark.reference is not None
        lines += _published_lines(at, len(benchmark.reference.datasets))
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
            here = [
                result
                for result in results
                if result.shots == row.shots and table.method in (ZERO_SHOT, result.method)
            ]
            cells = zip((*table.datasets, AVERAGE), (*row.cells, row.average), strict=True)
            for name, cell in cells:
                if cell is None:
                    continue
                over = row.averaged if name == AVERAGE else (name,)
                members = [result for result in here if result.dataset in over]
                yield {
                    "method": table.title,
                    "dataset": name,
                    "shots": row.shots,
                    "seeds": cell.count,
                    "accuracy": cell.mean,
                    "half_width": "" if cell.half_width is None else cell.half_width,
                    "averaged_datasets": len(over) if name == AVERAGE else "",
                    **{key: "+".join(values_of(members, key)) for key in EXPLAINED},
                    "chosen_on_test": "false",
                    "source": source,
                }


def _published_lines(at: Beside, complete: int) -> Iterator[dict[str, object]]:
    names = [*at.datasets, *([AVERAGE] * at.averages)]
    for method in at.methods:
        chosen = method.chosen_on_test
        for name, value in zip(names, at.values(method), strict=True):
            if value is not None:
                yield {
                    "method": method.method,
                    "dataset": name,
                    "shots": at.shots,
                    "accuracy": round(value / 100, 6),
                    "averaged_datasets": complete if name == AVERAGE else "",
                    "chosen_on_test": "" if chosen is None else str(chosen).lower(),
                    "source": method.source,
                }
