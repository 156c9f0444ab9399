"""The rows of sweeps' `results.parquet`: one a task and method, read, checked and merged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError
from safe_ray.specs import shots_in_words

PARQUET_FILE = "results.parquet"

_TEXT = ("backbone", "dataset", "method", "title", "episode_digest")
_WHOLE = ("shots", "seed", "test_samples")
_FRACTIONS = ("test_accuracy", "test_macro_accuracy", "test_zero_shot")
COLUMNS = (*_TEXT, *_WHOLE, *_FRACTIONS)
"""What a file must have; it may have more."""

Cell = tuple[str, int, int]
"""A task: data set, shots, seed."""


@dataclass(frozen=True)
class ResultRow:
    """What one method reached on the test split of one task.

    Attributes:
        backbone: its name.
        dataset: its name.
        shots: labelled training images a class.
        seed: of the episode.
        method: its short name.
        title: what tables call the method.
        accuracy: 0 to 1.
        macro_accuracy: 0 to 1, the mean over the classes of the accuracy in each.
        zero_shot: 0 to 1, the accuracy of the untouched model.
        test_samples: how many images these are over.
        episode_digest: of the support and validation samples.
    """

    backbone: str
    dataset: str
    shots: int
    seed: int
    method: str
    title: str
    accuracy: float
    macro_accuracy: float
    zero_shot: float
    test_samples: int
    episode_digest: str

    @property
    def cell(self) -> Cell:
        """The task."""
        return self.dataset, self.shots, self.seed

    @property
    def key(self) -> tuple[str, Cell, str]:
        """What no two rows share."""
        return self.backbone, self.cell, self.method


def read_rows(place: Path) -> tuple[ResultRow, ...]:
    """Read the results of a sweep.

    Args:
        place: the sweep's folder, or the Parquet file itself.

    Raises:
        InputError: there is no such file, it lacks a column, or a value is missing or not what its
            column holds.
    """
    import pyarrow as pa

    from safe_ray.arrow_files import parquet_schema, read_parquet

    file = place / PARQUET_FILE if place.is_dir() else place
    if not file.is_file():
        raise InputError(f"There is no {file}: name the folder of a sweep that has ended.")
    try:
        names = parquet_schema(file).names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InputError(
                f"{file} lacks {_enumerated(missing)}: give the command of that sweep again, which "
                "writes its results anew."
            )
        records = read_parquet(file, COLUMNS).to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file} cannot be read as Parquet ({reason}): name the folder of a sweep that has "
            "ended."
        ) from None
    return tuple(_row(record, f"row {at} of {file}") for at, record in enumerate(records))


def _enumerated(columns: Sequence[str]) -> str:
    kind = "the column" if len(columns) == 1 else "the columns"
    return f"{kind} {', '.join(columns)}"


def _row(record: Mapping[str, Any], where: str) -> ResultRow:
    for names, valid, what in (
        (_TEXT, _is_text, "text"),
        (_WHOLE, _is_whole, "a whole number from 0 on"),
        (_FRACTIONS, _is_fraction, "a fraction from 0 to 1"),
    ):
        for name in names:
            if not valid(record[name]):
                raise InputError(
                    f"{name} is {record[name]!r} in {where}, where {what} belongs: give the "
                    "command of that sweep again, which writes its results anew."
                )
    return ResultRow(
        backbone=record["backbone"],
        dataset=record["dataset"],
        shots=record["shots"],
        seed=record["seed"],
        method=record["method"],
        title=record["title"],
        accuracy=float(record["test_accuracy"]),
        macro_accuracy=float(record["test_macro_accuracy"]),
        zero_shot=float(record["test_zero_shot"]),
        test_samples=record["test_samples"],
        episode_digest=record["episode_digest"],
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1


def merge(sweeps: Iterable[tuple[Path, Sequence[ResultRow]]]) -> tuple[ResultRow, ...]:
    """Return the rows of all sweeps in their order; what two have alike is there once.

    A method is called by the first title that it has.

    Args:
        sweeps: the place of each, for errors, and its rows.

    Raises:
        InputError: two rows of the same backbone, task and method differ, or there are none.
    """
    found: dict[tuple[str, Cell, str], tuple[Path, ResultRow]] = {}
    titles: dict[str, str] = {}
    for place, rows in sweeps:
        for row in rows:
            known = replace(row, title=titles.setdefault(row.method, row.title))
            first, before = found.setdefault(row.key, (place, known))
            if before != known:
                dataset, shots, seed = row.cell
                raise InputError(
                    f"{first} and {place} have different results of {row.method} on {dataset} at "
                    f"{shots_in_words(shots)}, seed {seed}, backbone {row.backbone} (accuracy "
                    f"{before.accuracy:.4f} and {row.accuracy:.4f}): name only one of them."
                )
    if not found:
        raise InputError("The sweeps have no result: name the folder of a sweep that has ended.")
    return tuple(row for _, row in found.values())
