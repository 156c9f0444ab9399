"""Parquet with the encoded bytes of the images: one file, or a folder of them in name order.

Columns: `image` (binary), `class_name`, `split` (train, val or test) and `path` (a name of the
image that is unique in the data set); others, such as `source` and `licence`, are left alone.
Labels follow the sorted class names, or the option `classes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from safe_ray.data.readers.base import (
    BYTES_SCHEMA,
    SPLITS,
    RawDataset,
    check_options,
    chosen_classes,
)
from safe_ray.errors import InputError, nearest
from safe_ray.specs import DatasetSpec

COLUMNS = ("image", "class_name", "split", "path")
SCHEMA = pa.schema(
    [
        ("image", pa.large_binary()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("path", pa.string()),
    ]
)


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set.

    Raises:
        InputError: no such file, not Parquet, a missing or empty value, a missing column or one
            of another type, an unknown split, or a class that `options.classes` does not list.
    """
    check_options(spec, ("classes",))
    path = Path(location)
    table = pa.concat_tables([_read_file(file) for file in _files(spec, path)])
    names = pc.unique(table.column("class_name")).to_pylist()
    classes = chosen_classes(spec) or tuple(sorted(names))
    for name in names:
        if name not in classes:
            raise InputError(
                f"{path} has the class {name!r}, which options.classes of data set {spec.name!r} "
                f"does not list: add it there, or correct it.{nearest(name, classes)}"
            )
    labels = pc.index_in(table.column("class_name"), value_set=pa.array(classes, pa.string()))
    labelled = pa.table(
        {
            "path": table.column("path"),
            "label": labels.cast(pa.int32()),
            "image": table.column("image"),
        },
        schema=BYTES_SCHEMA,
    )
    splits = table.column("split")
    return RawDataset(
        source=str(path),
        classes=classes,
        tables={split: labelled.filter(pc.equal(splits, split)) for split in SPLITS},
    )


def _files(spec: DatasetSpec, path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise InputError(
                f"Data set {spec.name!r}: the folder {path} has no *.parquet file; put them there "
                "or correct its path."
            )
        return files
    if not path.exists():
        raise InputError(
            f"Data set {spec.name!r}: there is no file {path}; put it there, correct its path, or "
            "name the folder of your data sets with data.root=<folder>."
        )
    return [path]


def _read_file(file: Path) -> pa.Table:
    try:
        parquet = pq.ParquetFile(file)
        present = parquet.schema_arrow.names
        missing = [column for column in COLUMNS if column not in present]
        if missing:
            raise InputError(
                f"{file} lacks the column {missing[0]!r} (it has {', '.join(present)}): a data "
                f"set in Parquet needs {', '.join(COLUMNS)}."
            )
        table = parquet.read(columns=list(COLUMNS)).select(COLUMNS)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file} cannot be read as Parquet ({_first_line(error)}): write it again, or correct "
            "the path."
        ) from error
    for row, column in _nulls(table):
        raise InputError(f"{file}, row {row} has no {column}: fill it in, or drop the row.")
    try:
        table = table.cast(SCHEMA)
    except pa.ArrowException as error:
        found = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise InputError(
            f"{file} has columns of other types than binary for image and string for the rest "
            f"({found}): write it again with those."
        ) from error
    splits = table.column("split")
    for value in pc.unique(splits).to_pylist():
        if value not in SPLITS:
            row = pc.index(splits, value).as_py()
            raise InputError(
                f"{file}, row {row} is in the unknown split {value!r}: use one of "
                f"{', '.join(map(repr, SPLITS))}.{nearest(value, SPLITS)}"
            )
    return table


def _nulls(table: pa.Table) -> Iterator[tuple[int, str]]:
    for column in COLUMNS:
        values = table.column(column)
        if values.null_count:
            yield pc.index(pc.is_null(values), True).as_py(), column


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
