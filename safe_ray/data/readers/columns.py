"""Columns of a table by their usual names, or by the names that the options give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safe_ray.data.readers.base import SPLITS
from safe_ray.data.readers.splitting import split_named
from safe_ray.errors import InputError, nearest
from safe_ray.specs import DatasetSpec

# Names first: where a table has both, the label is a number for the same thing.
LABEL_COLUMNS = ("class_name", "class", "category", "label")
SPLIT_COLUMNS = ("split", "subset")


def find_column(
    spec: DatasetSpec, source: str, present: Sequence[str], option: str, usual: Sequence[str]
) -> str | None:
    """Return the column that an option names, or the first that has a usual name, in any case.

    Raises:
        InputError: the column that the option names is not there.
    """
    chosen = spec.options.get(option)
    if chosen is not None:
        if chosen not in present:
            raise InputError(
                f"{source} has no column {chosen!r}, which options.{option} of data set "
                f"{spec.name!r} names: it has {', '.join(map(repr, present))}."
                f"{nearest(str(chosen), present)}"
            )
        return str(chosen)
    by_lower = {name.lower(): name for name in reversed(present)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def parse_splits(source: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return the split of each row as an index into `SPLITS`, int8.

    Raises:
        InputError: a value that stands for no split.
    """
    values = pc.unique(column)
    numbers = []
    for value in values.to_pylist():
        split = split_named(value)
        if split is None:
            row = pc.index(column, value).as_py()
            raise InputError(
                f"{source}, row {row} is in the unknown split {value!r}: use one of "
                f"{', '.join(map(repr, SPLITS))}.{nearest(value, SPLITS)}"
            )
        numbers.append(SPLITS.index(split))
    rows = pc.index_in(column, value_set=values).to_numpy(zero_copy_only=False)
    return np.array(numbers, np.int8)[rows]


def as_text(source: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of text or whole numbers as text.

    Raises:
        InputError: it has another type, or a value is missing.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InputError(
            f"{source} has a column {name!r} of type {kind}: give text or whole numbers there."
        )
    refuse_nulls(source, name, column)
    text = column.cast(kind).cast(pa.string())
    empty = pc.index(text, "").as_py()
    if empty >= 0:
        raise InputError(f"{source}, row {empty} has no {name}: fill it in, or drop the row.")
    return text


def refuse_nulls(source: str, name: str, column: pa.ChunkedArray) -> None:
    """Refuse a column that lacks a value.

    Raises:
        InputError: it does.
    """
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise InputError(f"{source}, row {row} has no {name}: fill it in, or drop the row.")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
