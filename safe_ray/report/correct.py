"""`correct.parquet`: which test images a method got right, a row a task and method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_ray.errors import InputError
from safe_ray.report.files import read_entries, write_entries

CORRECT_FILE = "correct.parquet"

_COLUMNS = {
    "dataset": "string",
    "shots": "int32",
    "seed": "int64",
    "method": "string",
    "samples": "int32",
    "correct": "binary",
}


@dataclass(frozen=True, eq=False)
class Correct:
    """Which test images a method got right in one task.

    Attributes:
        dataset: its name.
        shots: labelled training images a class.
        seed: of the episode.
        method: the method's name; `zero_shot` for the untouched model.
        right: bool [images], in the order of the test split, which all tasks of a data set share.
    """

    dataset: str
    shots: int
    seed: int
    method: str
    right: NDArray[np.bool_]


def write_correct(rows: Sequence[Correct], folder: Path) -> Path:
    """Write `correct.parquet`, sorted by data set, shots and seed, and return its path.

    `correct` has a bit an image, the first in the highest bit of the first byte, and zeros at its
    end; `samples` says how many are of images.

    Raises:
        InputError: the folder cannot be written to.
    """
    ordered = sorted(rows, key=lambda row: (row.dataset, row.shots, row.seed))
    entries = [
        {
            "dataset": row.dataset,
            "shots": row.shots,
            "seed": row.seed,
            "method": row.method,
            "samples": row.right.size,
            "correct": np.packbits(row.right.astype(bool)).tobytes(),
        }
        for row in ordered
    ]
    return write_entries(entries, _COLUMNS, folder / CORRECT_FILE)


def read_correct(folder: Path) -> list[Correct]:
    """Read the `correct.parquet` of a sweep's folder; there are no rows if there is no file.

    Raises:
        InputError: the file is not Parquet, lacks a column, or has rows of another length than they
            say.
    """
    file = folder / CORRECT_FILE
    entries = read_entries(file, _COLUMNS, optional=tuple(_COLUMNS))
    return [_row(entry, f"row {at} of {file}") for at, entry in enumerate(entries)]


def _row(entry: dict[str, Any], where: str) -> Correct:
    samples, packed = entry["samples"], entry["correct"]
    lacking = None in entry.values()
    if lacking or samples < 0 or len(packed) != (samples + 7) // 8:
        raise InputError(
            f"{where} has not one bit for each of its {samples} samples: give the command of that "
            "sweep again, which writes it anew."
        )
    right = np.unpackbits(np.frombuffer(packed, np.uint8), count=samples).astype(bool)
    return Correct(entry["dataset"], entry["shots"], entry["seed"], entry["method"], right)
