"""Parquet with the encoded bytes of the images: one file, or a folder of them in name order.

Columns: `image` (binary, or Hugging Face's struct of `bytes` and `path`), `class_name` (or `class`,
`category`, `label`), and perhaps `split` (train, val or test) and `path` (a name of the image that
is unique in the data set, without which rows are numbered); others, such as `source` and `licence`,
are left alone. The options `image_column`, `label_column`, `split_column` and `path_column` name
others. Labels follow the sorted class names, or the option `classes`; numbers are indices into it,
or into the names that Hugging Face writes into its files. Without a split column the names of the
files tell (`train-00000-of-00004.parquet`); if they don't, a test split is drawn, as for folders
(`test_share`, `split_seed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from safe_ray.arrow_files import parquet_schema, read_parquet
from safe_ray.data.locations import exists, first_line, is_folder, join, open_input, walk
from safe_ray.data.readers.base import BYTES_SCHEMA, SPLITS, RawDataset, check_options
from safe_ray.data.readers.columns import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    as_text,
    find_column,
    parse_splits,
    refuse_nulls,
)
from safe_ray.data.readers.labels import label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide, splits_of_files
from safe_ray.errors import InputError
from safe_ray.outside import parse_json
from safe_ray.specs import DatasetSpec

IMAGE_COLUMNS = ("image", "img")
# No other usual names: a file name need not be unique in the data set.
PATH_COLUMNS = ("path",)
_OPTIONS = (
    "classes",
    "image_column",
    "label_column",
    "split_column",
    "path_column",
    *SPLIT_OPTIONS,
)


class _Part(NamedTuple):
    images: pa.ChunkedArray
    names: pa.ChunkedArray
    splits: np.ndarray | None
    paths: pa.ChunkedArray | None
    class_names: tuple[str, ...] | None


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set.

    Raises:
        InputError: no such file, not Parquet, a missing or empty value, a missing column or one
            of another type, an unknown split, or a class that `options.classes` does not list.
    """
    check_options(spec, _OPTIONS)
    relative = _files(spec, location)
    files = [join(location, path) for path in relative] if relative else [location]
    parts = [_read_file(spec, file) for file in files]
    images = _joined(parts, "images", pa.large_binary())
    names = _joined(parts, "names", pa.string())
    if all(part.paths is not None for part in parts):
        paths = _joined(parts, "paths", pa.string()).to_pylist()
    else:
        paths = [f"{row:05d}" for row in range(len(names))]
    labelling = label_classes(
        spec, location, pc.unique(names).to_pylist(), names=parts[0].class_names
    )
    labels = labelling.of(names)
    division = divide(spec, paths, labels, _splits(location, relative, parts))
    table = pa.table({"path": paths, "label": labels, "image": images}, schema=BYTES_SCHEMA)
    return RawDataset(
        source=location,
        classes=labelling.classes,
        tables=division.tables(table),
        listed=division.listed,
        notes=(*labelling.notes, *division.notes),
    )


def _files(spec: DatasetSpec, location: str) -> list[str]:
    """The relative paths of the files in a folder; none if the location is a file."""
    if is_folder(location):
        files = [path for path in walk(location) if path.lower().endswith(".parquet")]
        if not files:
            raise InputError(
                f"Data set {spec.name!r}: the folder {location} has no *.parquet file; put them "
                "there or correct its path."
            )
        return files
    if not exists(location):
        raise InputError(
            f"Data set {spec.name!r}: there is no file {location}; put it there, correct its "
            "path, or name the folder of your data sets with data.root=<folder>."
        )
    return []


def _joined(parts: Sequence[_Part], field: str, kind: pa.DataType) -> pa.ChunkedArray:
    columns: list[pa.ChunkedArray] = [getattr(part, field) for part in parts]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], kind)


def _splits(location: str, relative: Sequence[str], parts: Sequence[_Part]) -> np.ndarray | None:
    if all(part.splits is not None for part in parts):
        return np.concatenate([part.splits for part in parts if part.splits is not None])
    named = splits_of_files(location, relative)
    if not any(named):
        return None
    numbers = [SPLITS.index(split) for split in named if split is not None]
    return np.repeat(np.array(numbers, np.int8), [len(part.names) for part in parts])


def _read_file(spec: DatasetSpec, file: str) -> _Part:
    try:
        with open_input(file) as source:
            schema = parquet_schema(source)
            columns = _columns(spec, file, schema.names)
            assert columns[0] is not None
            _check_type(file, columns[0], schema.field(columns[0]).type)
            table = read_parquet(source, [name for name in columns if name is not None])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{file} cannot be read as Parquet ({first_line(error)}): write it again, or correct "
            "the path."
        ) from error
    image, label, split, path = columns
    assert image is not None
    assert label is not None

    def text(column: str) -> pa.ChunkedArray:
        return as_text(file, column, table.column(column))

    return _Part(
        images=_encoded(file, image, table.column(image)),
        names=text(label),
        splits=None if split is None else parse_splits(file, text(split)),
        paths=None if path is None else text(path),
        class_names=_hugging_face_names(schema.metadata or {}, label),
    )


def _columns(
    spec: DatasetSpec, file: str, present: Sequence[str]
) -> tuple[str | None, str | None, str | None, str | None]:
    image = find_column(spec, file, present, "image_column", IMAGE_COLUMNS)
    label = find_column(spec, file, present, "label_column", LABEL_COLUMNS)
    for column, usual, option in ((image, "image", "image"), (label, "class_name", "label")):
        if column is None:
            raise InputError(
                f"{file} lacks the column {usual!r} (it has {', '.join(present)}): a data set in "
                f"Parquet needs image and class_name; name another with options.{option}_column."
            )
    split = find_column(spec, file, present, "split_column", SPLIT_COLUMNS)
    path = find_column(spec, file, present, "path_column", PATH_COLUMNS)
    for column in (image, label, split, path):
        if column is not None and present.count(column) > 1:
            raise InputError(f"{file} has two columns {column!r}: rename or drop one.")
    return image, label, split, path


def _encoded(file: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    refuse_nulls(file, name, column)
    return column.cast(pa.large_binary())


def _check_type(file: str, name: str, kind: pa.DataType) -> None:
    """Refuse a column of other values than encoded images, before any is read."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise InputError(
            f"{file} has columns of other types than binary for the encoded image ({name}: "
            f"{kind}): write it again with those, or read paths with format=table."
        )


def _hugging_face_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    try:
        features: Any = parse_json(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
