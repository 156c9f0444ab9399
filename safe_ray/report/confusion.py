"""`confusion.parquet`: how often a class was taken for which on the test split.

A row a task and method, zero-shot among the methods.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_ray.errors import InputError
from safe_ray.outside import parse_json
from safe_ray.report.files import read_entries, write_entries

CONFUSION_FILE = "confusion.parquet"

_COLUMNS = {
    "dataset": "string",
    "shots": "int32",
    "seed": "int64",
    "method": "string",
    "classes": "string",
    "label": "binary",
    "said": "binary",
    "count": "binary",
}
_WHOLE = np.dtype("<i4")


@dataclass(frozen=True, eq=False)
class Confusion:
    """Test images of one task by class, and by what one method says of them.

    Only pairs that occur are kept: the square of a thousand classes is large.

    Attributes:
        dataset: its name.
        shots: labelled training images a class.
        seed: of the episode.
        method: the method's name; `zero_shot` for the untouched model.
        class_names: of the classes.
        label: int32 `[pairs]`, the class of the images.
        said: int32 `[pairs]`, the class that is said of them.
        count: int32 `[pairs]`, how many they are.
    """

    dataset: str
    shots: int
    seed: int
    method: str
    class_names: tuple[str, ...]
    label: NDArray[np.int32]
    said: NDArray[np.int32]
    count: NDArray[np.int32]

    @property
    def samples(self) -> NDArray[np.int64]:
        """`[classes]`, how many images each class has."""
        return self._sums(np.ones(len(self.count), bool))

    @property
    def right(self) -> NDArray[np.int64]:
        """`[classes]`, how many of them are taken for what they are."""
        return self._sums(self.label == self.said)

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """`[classes]`, 0 to 1; not a number where a class has no image."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.right / self.samples, np.float64)

    def matrix(self) -> NDArray[np.int64]:
        """Return `[classes, classes]`: a row for each class, a column for each that is said."""
        size = len(self.class_names)
        counts = np.zeros((size, size), np.int64)
        counts[self.label, self.said] = self.count
        return counts

    def mistaken(self) -> list[tuple[int, int, int]]:
        """Return count, class and what was said instead, the most frequent first."""
        pairs = zip(self.count.tolist(), self.label.tolist(), self.said.tolist(), strict=True)
        return sorted((pair for pair in pairs if pair[1] != pair[2]), key=lambda m: (-m[0], *m[1:]))

    def _sums(self, which: NDArray[np.bool_]) -> NDArray[np.int64]:
        sums = np.zeros(len(self.class_names), np.int64)
        np.add.at(sums, self.label[which], self.count[which])
        return sums


def count_pairs(
    labels: NDArray[np.int64], said: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return class, what was said, and how often, of each pair that occurs in N images."""
    pairs, count = np.unique(labels * classes + said, return_counts=True)
    label, taken = np.divmod(pairs, classes)
    return label.astype(np.int32), taken.astype(np.int32), count.astype(np.int32)


def write_confusions(rows: Sequence[Confusion], folder: Path) -> Path:
    """Write `confusion.parquet`, sorted by data set, shots and seed, and return its path.

    `classes` is a list of JSON; the pairs are little-endian integers of 32 bits.

    Raises:
        InputError: the folder cannot be written to.
    """
    entries = [
        {
            "dataset": row.dataset,
            "shots": row.shots,
            "seed": row.seed,
            "method": row.method,
            "classes": json.dumps(row.class_names, ensure_ascii=False),
            **{n: getattr(row, n).astype(_WHOLE).tobytes() for n in ("label", "said", "count")},
        }
        for row in sorted(rows, key=lambda row: (row.dataset, row.shots, row.seed))
    ]
    return write_entries(entries, _COLUMNS, folder / CONFUSION_FILE)


def read_confusions(folder: Path) -> list[Confusion]:
    """Read the `confusion.parquet` of a sweep's folder; there are no rows if there is no file.

    Raises:
        InputError: the file does not hold what `write_confusions` wrote.
    """
    file = folder / CONFUSION_FILE
    entries = read_entries(file, _COLUMNS)
    return [_row(entry, f"row {at} of {file}") for at, entry in enumerate(entries)]


def _row(entry: dict[str, Any], where: str) -> Confusion:
    try:
        names = parse_json(entry["classes"].encode())
        pairs = {n: np.frombuffer(entry[n], _WHOLE) for n in ("label", "said", "count")}
    except ValueError:
        names, pairs = None, {}
    if not _is_sound(names, pairs):
        raise InputError(
            f"{where} does not count the classes that it names: give the command of that sweep "
            "again, which writes it anew."
        )
    return Confusion(
        entry["dataset"], entry["shots"], entry["seed"], entry["method"], tuple(names), **pairs
    )


def _is_sound(names: Any, pairs: Mapping[str, NDArray[np.int32]]) -> bool:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    label, said, count = (pairs[name] for name in ("label", "said", "count"))
    if not len(label) == len(said) == len(count):
        return False
    return not len(label) or (
        min(label.min(), said.min(), count.min()) >= 0 and max(label.max(), said.max()) < len(names)
    )
