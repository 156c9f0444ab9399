"""`looks.parquet`: some test images, what is said of them, and where the poolings look.

A row an image, with a small copy of it: the page is made again from this file alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safe_ray.errors import InputError
from safe_ray.report.files import read_entries, write_entries

LOOKS_FILE = "looks.parquet"
_REAL = np.dtype("<f4")
LARGEST_SIDE = 1024
"""No map of attention has more places along a side."""

_COLUMNS = {
    "dataset": "string",
    "shots": "int32",
    "seed": "int64",
    "method": "string",
    "path": "string",
    "label": "string",
    "original_said": "string",
    "original_probability": "float",
    "said": "string",
    "probability": "float",
    "original": "binary",
    "tuned": "binary",
    "picture": "binary",
}


@dataclass(frozen=True, eq=False)
class LookedAt:
    """A test image of a task.

    Attributes:
        dataset: its name.
        shots: labelled training images a class.
        seed: of the episode.
        method: the method's name.
        path: of the image, as the data set has it.
        label: its class.
        original_said: the class that zero-shot says.
        original_probability: of that class.
        said: the class that the method says.
        probability: of that class, calibrated.
        original: float32 `[h, h]`, where the original pooling looks; it adds up to 1 at most.
        tuned: where the method's pooling looks.
        picture: the evaluation view as a small WebP file, or None if it could not be read.
    """

    dataset: str
    shots: int
    seed: int
    method: str
    path: str
    label: str
    original_said: str
    original_probability: float
    said: str
    probability: float
    original: NDArray[np.float32]
    tuned: NDArray[np.float32]
    picture: bytes | None


def write_looks(rows: Sequence[LookedAt], folder: Path) -> Path:
    """Write `looks.parquet` and return its path.

    Raises:
        InputError: the folder cannot be written to.
    """
    entries = [
        {
            **{name: getattr(row, name) for name in _COLUMNS},
            "original": row.original.astype(_REAL).tobytes(),
            "tuned": row.tuned.astype(_REAL).tobytes(),
        }
        for row in sorted(rows, key=lambda row: (row.dataset, row.shots, row.seed))
    ]
    return write_entries(entries, _COLUMNS, folder / LOOKS_FILE)


def read_looks(folder: Path) -> list[LookedAt]:
    """Read the `looks.parquet` of a sweep's folder; there are no rows if there is no file.

    Raises:
        InputError: the file does not hold what `write_looks` wrote.
    """
    file = folder / LOOKS_FILE
    entries = read_entries(file, _COLUMNS, optional=("picture",))
    return [_row(entry, f"row {at} of {file}") for at, entry in enumerate(entries)]


def _row(entry: dict[str, Any], where: str) -> LookedAt:
    maps = {}
    for name in ("original", "tuned"):
        size = len(entry[name]) // _REAL.itemsize
        side = math.isqrt(size)
        square = 0 < side <= LARGEST_SIDE and side * side * _REAL.itemsize == len(entry[name])
        weights = np.frombuffer(entry[name], _REAL, size)
        if not square or not np.isfinite(weights).all() or weights.min() < 0:
            raise InputError(
                f"{where} has no square of weights: give the command of that sweep again, which "
                "writes it anew."
            )
        maps[name] = weights.reshape(side, side)
    return LookedAt(**{**entry, **maps})
