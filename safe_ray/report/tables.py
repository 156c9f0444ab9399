"""The table of a sweep, on the console, as Markdown and as Parquet.

One row a data set and number of shots: means over seeds in per cent, with 95% intervals. The last
row for every number of shots averages over the data sets, seed by seed, and takes the interval
over these averages.

The table is of accuracy. Where mean per class accuracy is another number in any of its cells, a
second table of the same form has that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO

from safe_ray.files import replacing, write_atomically
from safe_ray.report.intervals import (
    WHY_NO_INTERVAL,
    Interval,
    mean_interval,
    paired_difference,
    seeds_in_words,
)
from safe_ray.report.summary import Accuracies, Protocol, TaskResult, in_order, write_summary
from safe_ray.specs import Metric

MARKDOWN_FILE = "results.md"
PARQUET_FILE = "results.parquet"

COLUMNS = (
    "data set",
    "shots",
    "seeds",
    "chosen by",
    "zero-shot",
    "tuned only (alpha = 1)",
    "SAFE",
    "SAFE minus zero-shot",
)
AVERAGE = "average"
NOTE = (
    "Test accuracy in per cent, mean over seeds ± half of the 95% interval (Student's t); the "
    f"difference is paired by seed. {WHY_NO_INTERVAL} Winners were chosen by: coop, a few "
    "validation samples a class; cross, cross-validation on the support samples; full, the whole "
    "validation split; never by a test sample."
)
PER_CLASS = "Mean per class accuracy: the mean over the classes of the accuracy in each"
NOT_SHOWN = "!"
"""Marks the row of a task whose validation samples do not show a gain."""

# A table is as wide as its cells are: what is printed into a file is never cut.
_WIDTH_OF_A_FILE = 1000


@dataclass(frozen=True)
class Row:
    """One row: a data set, or the average over data sets, at one number of shots.

    The intervals are over seeds and in [0, 1] (the difference in [-1, 1]). `not_shown` says of how
    many of its tasks the validation samples do not show a gain beyond chance; an average and a
    target have none.
    """

    dataset: str
    shots: int
    seeds: int
    selection: str
    zero_shot: Interval
    tuned_only: Interval
    safe: Interval
    gain: Interval
    not_shown: int = 0
    is_average: bool = False


def summarise(results: Sequence[TaskResult], metric: Metric = "accuracy") -> list[Row]:
    """Return a row for each data set and number of shots, then the averages over data sets.

    Args:
        results: of tasks.
        metric: what the test accuracies are.

    The rows of a data set are followed by those of the targets that its heads were tested on, which
    are in no average.

    An average uses the seeds that every data set has at this number of shots. Where there is no
    such seed it averages the data sets' means and has no interval. One data set has no average.
    """
    ordered = in_order(results)
    groups: dict[tuple[str, int], list[TaskResult]] = {}
    for result in ordered:
        groups.setdefault((result.dataset, result.shots), []).append(result)
    rows = []
    for (dataset, shots), group in groups.items():
        tests = [result.test.by(metric) for result in group]
        row = _row(dataset, shots, tests, _selection(group))
        rows.append(replace(row, not_shown=_count_not_shown(group)))
        for target in group[0].targets:
            found = [result.targets[target] for result in group if target in result.targets]
            tests = [test.by(metric) for test in found]
            rows.append(_row(f"{dataset} on {target}", shots, tests, _selection(group)))
    for shots in sorted({shots for _, shots in groups}):
        members = [group for (_, other), group in groups.items() if other == shots]
        if len(members) > 1:
            rows.append(_average(shots, members, metric))
    return rows


def _selection(results: Sequence[TaskResult]) -> str:
    return ", ".join(sorted({_chosen_by(result.protocol) for result in results}))


def _chosen_by(protocol: Protocol) -> str:
    ending = "" if protocol.metric == "accuracy" else f", {protocol.metric.replace('_', ' ')}"
    return protocol.selection + ending


def _count_not_shown(results: Sequence[TaskResult]) -> int:
    return sum(not result.validation.gain_shown for result in results)


def _row(
    dataset: str,
    shots: int,
    tests: Sequence[Accuracies],
    selection: str,
    is_average: bool = False,
) -> Row:
    zero_shot = [test.zero_shot for test in tests]
    safe = [test.safe for test in tests]
    return Row(
        dataset=dataset,
        shots=shots,
        seeds=len(tests),
        selection=selection,
        zero_shot=mean_interval(zero_shot),
        tuned_only=mean_interval([test.tuned_only for test in tests]),
        safe=mean_interval(safe),
        gain=paired_difference(safe, zero_shot),
        is_average=is_average,
    )


def _average(shots: int, members: Sequence[Sequence[TaskResult]], metric: Metric) -> Row:
    by_seed = [{result.seed: result.test.by(metric) for result in group} for group in members]
    common = sorted(set.intersection(*(set(tests) for tests in by_seed)))
    if common:
        tests = [_mean_test([tests[seed] for tests in by_seed]) for seed in common]
    else:
        tests = [_mean_test([_mean_test(list(tests.values())) for tests in by_seed])]
    selection = _selection([result for group in members for result in group])
    return _row(AVERAGE, shots, tests, selection, is_average=True)


def _mean_test(tests: Sequence[Accuracies]) -> Accuracies:
    names = [field.name for field in fields(Accuracies)]
    means = {name: mean_interval([getattr(test, name) for test in tests]).mean for name in names}
    return Accuracies(**means)


def not_shown_line(results: Sequence[TaskResult]) -> str:
    """Return a sentence on the tasks whose validation samples show no gain, or "" if all do."""
    count = _count_not_shown(results)
    if not count:
        return ""
    return (
        f"In {count} of {len(results)} task{'s' * (len(results) != 1)} the validation samples do "
        "not show a gain over zero-shot beyond chance (sign test on the samples that only one of "
        "the two gets right, 5%, one-sided)."
    )


def _notes(results: Sequence[TaskResult]) -> list[str]:
    """Return what stands under the table, a line each."""
    not_shown = not_shown_line(results)
    return [NOTE, *([f"{NOT_SHOWN} {not_shown}"] if not_shown else [])]


def _tables(results: Sequence[TaskResult]) -> list[tuple[str, list[Row]]]:
    """Return the rows of the table, and those by mean per class accuracy if they differ."""
    tables = [("", summarise(results)), (PER_CLASS, summarise(results, "mean_per_class"))]
    first, second = ([_cells(row) for row in rows] for _, rows in tables)
    return tables[:1] if first == second else tables


def _per_cent(interval: Interval, signed: bool = False) -> str:
    mean = f"{100 * interval.mean:+.1f}" if signed else f"{100 * interval.mean:.1f}"
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.1f}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.dataset,
        str(row.shots),
        seeds_in_words(row.seeds),
        row.selection,
        _per_cent(row.zero_shot),
        _per_cent(row.tuned_only),
        _per_cent(row.safe),
        f"{NOT_SHOWN} " * (row.not_shown > 0) + _per_cent(row.gain, signed=True),
    )


def print_table(results: Sequence[TaskResult], file: IO[str] | None = None) -> None:
    """Print the table, with colours only on a terminal and in ASCII where UTF-8 is not spoken."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    file = sys.stdout if file is None else file
    terminal = file.isatty()
    unicode = (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")

    def spoken(text: str) -> str:
        return text if unicode else text.replace("±", "+/-").encode("ascii", "replace").decode()

    console = Console(
        file=file,
        width=None if terminal else _WIDTH_OF_A_FILE,
        no_color=None if terminal else True,
        highlight=False,
    )
    tables = _tables(results)
    for title, rows in tables:
        table = Table(
            box=box.SIMPLE_HEAD if unicode else box.ASCII,
            title=title or None,
            title_justify="left",
            caption=spoken("\n".join(_notes(results))) if rows is tables[-1][1] else None,
            caption_justify="left",
        )
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "data set" else "right", no_wrap=True)
        previous: Row | None = None
        for row in rows:
            if previous is not None and row.is_average and not previous.is_average:
                table.add_section()
            # Names are data: their brackets are not rich's markup.
            table.add_row(
                *(spoken(cell).replace("[", r"\[") for cell in _cells(row)),
                style="bold" if row.is_average else None,
            )
            previous = row
        console.print(table)


def markdown(results: Sequence[TaskResult]) -> str:
    """Return the table as GitHub's Markdown, with a note on how to read it."""
    lines: list[str] = []
    for title, rows in _tables(results):
        lines += [f"{title}:", ""] if title else []
        lines += ["| " + " | ".join(COLUMNS) + " |", "|:--" + "|--:" * (len(COLUMNS) - 1) + "|"]
        for row in rows:
            cells = [cell.replace("|", r"\|") for cell in _cells(row)]
            shown = (f"**{cell}**" if row.is_average else cell for cell in cells)
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{note}\n" for note in _notes(results))])


def flat(result: TaskResult) -> dict[str, object]:
    """Return one task's entry with `best.lr` as `best_lr` and so on, for a table.

    The targets are one JSON object in a column of their own.
    """
    values = result.to_json()
    targets = json.dumps(values.pop("targets"))
    return {**_flattened(values), "targets": targets}


def _flattened(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    entry: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            entry |= _flattened(value, f"{prefix}{key}_")
        else:
            entry[prefix + key] = value
    return entry


def write_report(
    results: Sequence[TaskResult], folder: Path, without: Sequence[str] = ()
) -> list[Path]:
    """Write `summary.json`, `results.parquet` and `results.md`, and return their paths.

    Args:
        results: an entry a task.
        folder: where the files go.
        without: the ids of tasks that have no result, which `results.md` names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    summary = write_summary(results, folder)
    parquet = folder / PARQUET_FILE
    schema = pa.schema(
        [
            ("dataset", pa.string()),
            ("shots", pa.int32()),
            ("seed", pa.int64()),
            ("episode_digest", pa.string()),
            ("best_lr", pa.float64()),
            ("best_weight_decay", pa.float64()),
            ("best_epochs", pa.int32()),
            ("best_alpha", pa.float64()),
            ("validation_accuracy", pa.float64()),
            ("validation_mean_per_class", pa.float64()),
            ("validation_nll", pa.float64()),
            ("validation_gained", pa.int32()),
            ("validation_lost", pa.int32()),
            ("validation_gain_shown", pa.bool_()),
            ("test_zero_shot", pa.float64()),
            ("test_tuned_only", pa.float64()),
            ("test_safe", pa.float64()),
            ("test_samples", pa.int32()),
            ("test_mean_per_class_zero_shot", pa.float64()),
            ("test_mean_per_class_tuned_only", pa.float64()),
            ("test_mean_per_class_safe", pa.float64()),
            ("targets", pa.string()),
            ("protocol_selection", pa.string()),
            ("protocol_metric", pa.string()),
            ("protocol_choose_by", pa.string()),
            ("protocol_convention", pa.string()),
            ("protocol_prompts", pa.string()),
            ("protocol_support_samples", pa.int32()),
            ("protocol_validation_samples", pa.int32()),
            ("protocol_train_digest", pa.string()),
            ("protocol_validation_digest", pa.string()),
            ("head", pa.string()),
            ("mlflow_run_id", pa.string()),
        ]
    )
    table = pa.Table.from_pylist([flat(result) for result in in_order(results)], schema=schema)
    with replacing(parquet) as temporary:
        pq.write_table(table, temporary)
    text = folder / MARKDOWN_FILE
    missing = f"\nWithout a result: {', '.join(without)}.\n" if without else ""
    write_atomically(text, markdown(results) + missing)
    return [summary, parquet, text]
