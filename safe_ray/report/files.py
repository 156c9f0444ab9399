"""Parquet files of a sweep's folder that hold a row a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safe_ray.errors import InputError
from safe_ray.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa


def write_entries(
    entries: Sequence[Mapping[str, Any]], columns: Mapping[str, str], file: Path
) -> Path:
    """Write rows as Parquet and return the path.

    Args:
        entries: the rows.
        columns: the type of each column, by Arrow's names.
        file: where to.

    Raises:
        InputError: the folder cannot be written to.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(file) as temporary:
        table = pa.Table.from_pylist([dict(entry) for entry in entries], schema=_schema(columns))
        pq.write_table(table, temporary, compression="zstd")
    return file


def read_entries(
    file: Path, columns: Mapping[str, str], optional: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Read what `write_entries` wrote; there are no rows if there is no file.

    Args:
        file: to read.
        columns: as they were written.
        optional: those that may be null.

    Raises:
        InputError: the file is not Parquet, lacks a column, or has one of another type or with a
            null in it.
    """
    import pyarrow as pa

    from safe_ray.arrow_files import parquet_schema, read_parquet

    if not file.is_file():
        return []
    again = "give the command of that sweep again, which writes it anew."
    try:
        present = parquet_schema(file).names
        missing = [name for name in columns if name not in present]
        if missing:
            raise InputError(f"{file} lacks the columns {missing}: {again}")
        table = read_parquet(file, list(columns)).cast(_schema(columns))
        entries: list[dict[str, Any]] = table.to_pylist()
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as Parquet ({reason}): {again}") from None
    for at, entry in enumerate(entries):
        empty = [n for n, value in entry.items() if n not in optional and value is None]
        if empty:
            raise InputError(f"row {at} of {file} lacks {empty}: {again}")
    return entries


def _schema(columns: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
