"""Predictions as rows: one an image, in CSV, Parquet or JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from safe_ray.errors import InputError

FORMATS = (".csv", ".parquet", ".jsonl")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        path: what it is called.
        top: classes and their probabilities, the most probable first; empty if there is an error.
        error: why it could not be classified.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def predictions(
    paths: Sequence[str],
    errors: Sequence[str | None],
    probabilities: Tensor,
    class_names: Sequence[str],
    top: int,
) -> list[Prediction]:
    """Return a prediction for each path.

    Args:
        paths: of all images.
        errors: why each could not be read, or None.
        probabilities: `[n, classes]`, of those without an error, in their order.
        class_names: of the columns.
        top: how many classes each gets; all if there are fewer.
    """
    values, places = torch.topk(probabilities, min(top, len(class_names)), dim=-1)
    rows = zip(values.tolist(), places.tolist(), strict=True)
    said = []
    for path, error in zip(paths, errors, strict=True):
        if error is not None:
            said.append(Prediction(path, error=error))
        else:
            best, at = next(rows)
            named = tuple((class_names[i], value) for i, value in zip(at, best, strict=True))
            said.append(Prediction(path, named))
    return said


def columns(top: int) -> list[str]:
    """Return the names of the columns: `path, class, probability, error, class_2, ...`."""
    more = [f"{name}_{place}" for place in range(2, top + 1) for name in ("class", "probability")]
    return ["path", "class", "probability", "error", *more]


class Writer(Protocol):
    """Takes predictions, some at a time."""

    def write(self, some: Sequence[Prediction]) -> None:
        """Write them."""
        ...


def check_out(out: Path) -> None:
    """Refuse a file that could not be written when all is done.

    Raises:
        InputError: its ending is of no format, or its folder is not there.
    """
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out {out} has to end in one of {', '.join(FORMATS)}: rename it.")
    if not out.parent.is_dir():
        raise InputError(f"There is no folder {out.parent} for --out {out.name}: make it first.")


@contextmanager
def writer(out: Path | None, top: int) -> Iterator[Writer]:
    """Open a writer, which has written the file when the block ends.

    Until then it is `<out>.partial`, which stays there if the block fails.

    Args:
        out: a file whose ending is one of `FORMATS`; None is CSV to standard output.
        top: how many classes each row has.

    Raises:
        InputError: the file cannot be written.
    """
    if out is None:
        yield _Csv(sys.stdout, top)
        sys.stdout.flush()
        return
    partial = out.with_name(out.name + _PARTIAL)
    try:
        if out.suffix.lower() == ".parquet":
            with pq.ParquetWriter(partial, _schema(top)) as table:
                yield _Parquet(table, top)
        else:
            kind = _JsonLines if out.suffix.lower() == ".jsonl" else _Csv
            with open(partial, "w", encoding="utf-8", newline="") as stream:
                yield kind(stream, top)
        partial.replace(out)
    except OSError as error:
        raise InputError(
            f"{partial} cannot be written ({error.strerror}): free space, or name another file."
        ) from error


def _values(one: Prediction, top: int) -> list[Any]:
    pairs = [*one.top, *([(None, None)] * (top - len(one.top)))]
    (name, probability), *others = pairs
    return [one.path, name, probability, one.error, *(v for pair in others for v in pair)]


class _Csv:
    def __init__(self, stream: TextIO, top: int) -> None:
        self._stream, self._top = stream, top
        self._put([columns(top)])

    def write(self, some: Sequence[Prediction]) -> None:
        """See `Writer`."""
        self._put(
            [
                [f"{v:.6f}" if isinstance(v, float) else v for v in _values(one, self._top)]
                for one in some
            ]
        )

    def _put(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._stream.write(text.getvalue())
        self._stream.flush()


class _JsonLines:
    def __init__(self, stream: TextIO, top: int) -> None:
        self._stream, self._top = stream, top

    def write(self, some: Sequence[Prediction]) -> None:
        """See `Writer`."""
        for one in some:
            row = dict(zip(columns(self._top), _values(one, self._top), strict=True))
            self._stream.write(json.dumps(row, ensure_ascii=False) + "\n")


class _Parquet:
    def __init__(self, table: pq.ParquetWriter, top: int) -> None:
        self._table, self._top = table, top

    def write(self, some: Sequence[Prediction]) -> None:
        """See `Writer`."""
        rows = [_values(one, self._top) for one in some]
        arrays = [
            pa.array([row[place] for row in rows], field.type)
            for place, field in enumerate(_schema(self._top))
        ]
        self._table.write_batch(pa.record_batch(arrays, schema=_schema(self._top)))


def _schema(top: int) -> pa.Schema:
    return pa.schema(
        [
            (name, pa.float32() if name.startswith("probability") else pa.string())
            for name in columns(top)
        ]
    )
