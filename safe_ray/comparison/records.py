"""All figures of a comparison in full precision, as CSV and as Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from safe_ray.comparison.analysis import Average, Difference, Ranking
from safe_ray.comparison.pairing import ZERO_SHOT, Contestant, Paired
from safe_ray.files import replacing

AVERAGE = "average"
COLUMNS = (
    "quantity",
    "method",
    "title",
    "backbone",
    "baseline",
    "dataset",
    "shots",
    "datasets",
    "tasks",
    "value",
    "low",
    "high",
    "p",
    "p_holm",
)
"""Columns of both files.

`quantity` is `accuracy`, `macro_accuracy`, `difference`, `macro_difference` or `mean_rank`;
accuracies are fractions, and so are differences. `dataset` is `average` for means over data sets;
`shots` is empty for all shots together. `low` and `high` are the 95% interval.
"""

Record = dict[str, str | int | float | None]


def records(
    paired: Paired,
    found: Sequence[tuple[str, Sequence[Average]]],
    compared: Sequence[tuple[str, Sequence[Difference]]],
    ranked: Ranking | None,
) -> list[Record]:
    """Return a record for every figure.

    Args:
        paired: what is compared.
        found: the name of each quantity, and its averages.
        compared: the name of each quantity, and its differences.
        ranked: the ranks, if there are any.
    """
    lines = [record for name, several in found for record in _averages(name, paired, several)]
    for name, differences in compared:
        for difference in differences:
            low, high = difference.interval or (None, None)
            lines.append(
                _who(difference.contestant, paired)
                | {
                    "quantity": name,
                    "baseline": paired.baseline.name,
                    "dataset": AVERAGE,
                    "shots": difference.shots,
                    "datasets": difference.datasets,
                    "tasks": difference.pairs,
                    "value": difference.mean,
                    "low": low,
                    "high": high,
                    "p": difference.p,
                    "p_holm": difference.p_holm,
                }
            )
    if ranked is not None:
        for contestant, rank in zip(ranked.contestants, ranked.mean_ranks, strict=True):
            who = _who(contestant, paired)
            lines.append(who | {"quantity": "mean_rank", "dataset": AVERAGE, "value": rank})
    return [{name: line.get(name) for name in COLUMNS} for line in lines]


def _averages(name: str, paired: Paired, several: Sequence[Average]) -> Iterator[Record]:
    for average in several:
        who: Record = {"quantity": name, "shots": average.shots}
        who |= _who(average.contestant, paired)
        tasks = 0
        for dataset, cell in zip(paired.datasets, average.cells, strict=True):
            if cell is not None:
                tasks += cell.count
                yield who | {
                    "dataset": dataset,
                    "datasets": 1,
                    "tasks": cell.count,
                    "value": cell.mean,
                    "low": cell.low,
                    "high": cell.high,
                }
        yield who | {
            "dataset": AVERAGE,
            "datasets": average.datasets,
            "tasks": tasks,
            "value": average.average.mean,
            "low": average.average.low,
            "high": average.average.high,
        }


def _who(contestant: Contestant | None, paired: Paired) -> Record:
    if contestant is None:
        (backbone,) = paired.backbones
        return {"method": ZERO_SHOT, "title": "untouched model", "backbone": backbone}
    return {
        "method": contestant.method,
        "title": contestant.title,
        "backbone": contestant.backbone,
    }


def csv_text(lines: Sequence[Record]) -> str:
    """Return the records as CSV; what is not there is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def write_parquet(lines: Sequence[Record], file: Path) -> None:
    """Write the records as Parquet; what is not there is null.

    Raises:
        InputError: the folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(COLUMNS, pa.string())
    types |= dict.fromkeys(("shots", "datasets", "tasks"), pa.int32())
    types |= dict.fromkeys(("value", "low", "high", "p", "p_holm"), pa.float64())
    table = pa.Table.from_pylist(list(lines), schema=pa.schema(list(types.items())))
    with replacing(file) as temporary:
        pq.write_table(table, temporary)
