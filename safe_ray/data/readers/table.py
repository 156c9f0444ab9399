"""A table of paths and labels: CSV, TSV or Parquet, with a row an image.

Columns, in any case: `path` (or `file`, `filename`, `file_name`, `image`, `image_path`), `label`
(or `class`, `class_name`, `category`) and perhaps `split`; the options `path_column`,
`label_column` and `split_column` name others. Relative paths start at the option `images`, by
default the table's own folder; absolute ones and URIs stay what they are. Labels are class names,
or numbers of the option `classes`. `delimiter` is found in the first line where it is not given.
Without a split column one is drawn, as for folders (`test_share`, `split_seed`).
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from safe_ray.arrow_files import parquet_schema, read_parquet
from safe_ray.data.locations import (
    absent,
    exists,
    first_line,
    is_folder,
    is_uri,
    join,
    locate,
    open_input,
    read_bytes,
)
from safe_ray.data.readers.base import FILES_SCHEMA, RawDataset, check_options
from safe_ray.data.readers.columns import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    as_text,
    find_column,
    parse_splits,
)
from safe_ray.data.readers.labels import label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image_path", "image")
_NAMED_FILES = 3
DELIMITERS = (",", "\t", ";", "|")
SCHEMES = (
    "file",
    "http",
    "https",
    "s3",
    "gs",
    "gcs",
    "hdfs",
    "viewfs",
    "abfs",
    "abfss",
    "hf",
    "memory",
)
_OPTIONS = (
    "path_column",
    "label_column",
    "split_column",
    "images",
    "delimiter",
    "classes",
    *SPLIT_OPTIONS,
)


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; no image is opened.

    Raises:
        InputError: no such file or image folder, not a table, a missing column or value, an
            unknown split, or a class that `options.classes` lacks.
    """
    check_options(spec, _OPTIONS)
    if is_folder(location) or not exists(location):
        raise InputError(
            f"Data set {spec.name!r}: there is no file {location}; put it there, correct its "
            "path, or name the folder of your data sets with data.root=<folder>."
        )
    reading = _read_parquet if location.lower().endswith(".parquet") else _read_csv
    written, names, splits = reading(spec, location)
    paths, files = _resolve(written.to_pylist(), _images(spec, location))
    labelling = label_classes(spec, location, pc.unique(names).to_pylist())
    labels = labelling.of(names)
    found = None if splits is None else parse_splits(location, splits)
    # Drawn by what the table says, which does not depend on where it lies.
    division = divide(spec, written.to_pylist(), labels, found)
    table = pa.table({"path": paths, "label": labels, "file": files}, schema=FILES_SCHEMA)
    return RawDataset(
        source=location,
        classes=labelling.classes,
        tables=division.tables(table),
        listed=division.listed,
        notes=(
            f"{len(labelling.classes)} classes, as {location} names them.",
            *labelling.notes,
            *division.notes,
            *_absent_notes(location, files),
        ),
    )


def _absent_notes(location: str, files: Sequence[str]) -> list[str]:
    gone = absent(files)
    if not gone:
        return []
    shown = ", ".join(gone[:_NAMED_FILES]) + (", ..." if len(gone) > _NAMED_FILES else "")
    rows = (
        "1 row names a file that is" if len(gone) == 1 else f"{len(gone)} rows name files that are"
    )
    return [
        f"In {location}, {rows} not there ({shown}): a task that draws one, or the test split if "
        "one is in it, stops the run, unless data.skip_bad=true."
    ]


_Columns = tuple[pa.ChunkedArray, pa.ChunkedArray, pa.ChunkedArray | None]


def _read_csv(spec: DatasetSpec, location: str) -> _Columns:
    try:
        content = read_bytes(location).removeprefix(b"\xef\xbb\xbf")
        header = content.partition(b"\n")[0].decode()
        delimiter = _delimiter(spec, header)
        present = next(csv.reader(io.StringIO(header.rstrip("\r")), delimiter=delimiter), [])
        wanted = _wanted(spec, location, present)
        table = pacsv.read_csv(
            pa.BufferReader(content),
            # A caption in another column may have several lines.
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{location} cannot be read as a table ({first_line(error)}): write it as CSV in "
            "UTF-8, with the names of the columns in the first line."
        ) from error
    return _columns(location, table, wanted)


def _read_parquet(spec: DatasetSpec, location: str) -> _Columns:
    try:
        with open_input(location) as source:
            wanted = _wanted(spec, location, parquet_schema(source).names)
            table = read_parquet(source, wanted)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{location} cannot be read as Parquet ({first_line(error)}): write it again, or "
            "correct the path."
        ) from error
    return _columns(location, table, wanted)


def _columns(location: str, table: pa.Table, wanted: Sequence[str]) -> _Columns:
    texts = [as_text(location, name, table.column(name)) for name in wanted]
    return texts[0], texts[1], texts[2] if len(texts) > 2 else None


def _delimiter(spec: DatasetSpec, header: str) -> str:
    delimiter = spec.options.get("delimiter")
    if delimiter is None:
        return max(DELIMITERS, key=header.count)
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise InputError(
            f"Data set {spec.name!r} has options.delimiter={delimiter!r}: give one character."
        )
    return delimiter


def _wanted(spec: DatasetSpec, location: str, present: Sequence[str]) -> list[str]:
    wanted = []
    for option, usual in (("path_column", PATH_COLUMNS), ("label_column", LABEL_COLUMNS)):
        column = find_column(spec, location, present, option, usual)
        if column is None:
            raise InputError(
                f"{location} lacks a column {usual[0]!r} (it has "
                f"{', '.join(map(repr, present))}): name its columns in the first line, or give "
                f"the one to take as options.{option}."
            )
        wanted.append(column)
    split = find_column(spec, location, present, "split_column", SPLIT_COLUMNS)
    for column in (*wanted, split):
        if present.count(column or "") > 1:
            raise InputError(f"{location} has two columns {column!r}: rename or drop one.")
    return wanted if split is None else [*wanted, split]


def _images(spec: DatasetSpec, location: str) -> str:
    folder = location.rpartition("/")[0]
    images = spec.options.get("images")
    if images is None:
        return folder
    chosen = str(images)
    if is_uri(folder) and not is_uri(chosen) and not chosen.startswith("/"):
        chosen = join(folder, chosen)
    chosen = locate(chosen, Path(folder))
    if not is_folder(chosen):
        raise InputError(
            f"Data set {spec.name!r}: there is no folder {chosen}; correct options.images, which "
            "the paths in its table start at."
        )
    return chosen


def check_scheme(text: str, root: str) -> None:
    """Refuse a row that names a file system which nobody asked for: some of them run programs.

    Args:
        text: the URI in the row.
        root: where the table lies.

    Raises:
        InputError: it does.
    """
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES and scheme != root.partition("://")[0]:
        raise InputError(
            f"The row {text!r} names a file by the scheme {scheme!r}: a table may name local files "
            f"and {', '.join(f'{known}://' for known in SCHEMES)}, and files where it lies itself."
        )


def _resolve(written: Sequence[str], images: str) -> tuple[list[str], list[str]]:
    """The relative path that names each image, and the file that it is in."""
    root = images if is_uri(images) else posixpath.normpath(images)
    paths: list[str] = []
    files: list[str] = []
    inside = True
    for text in written:
        if is_uri(text):
            check_scheme(text, root)
            file = locate(text, Path())
        elif is_uri(root):
            file = join(root, posixpath.normpath(text))
        else:
            file = posixpath.normpath(posixpath.join(root, text))
        files.append(file)
        if is_uri(root) and not is_uri(text):
            paths.append(posixpath.normpath(text))
        else:
            inside = inside and file.startswith(root + "/")
            paths.append(file[len(root) + 1 :])
    if inside:
        return paths, files
    # One image outside names all by their whole paths: what is unique stays so.
    return [file.partition("://")[2] or file.lstrip("/") for file in files], files
