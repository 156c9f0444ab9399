"""What a person names on the command line, as a stream of images to classify."""

from __future__ import annotations

import glob
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from safe_ray.arrow_files import parquet_batches, parquet_schema
from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import (
    exists,
    first_line,
    is_folder,
    join,
    list_folder,
    locate,
    open_input,
)
from safe_ray.data.prompts import canonical_class_name
from safe_ray.data.readers.columns import LABEL_COLUMNS
from safe_ray.data.readers.table import DELIMITERS, PATH_COLUMNS, check_scheme
from safe_ray.errors import InputError
from safe_ray.files import is_uri
from safe_ray.outside import MIB, parse_json

STANDARD_INPUT = "-"
TABLES = (".csv", ".tsv", ".parquet", ".jsonl")
LONGEST_LINE = 16 * MIB
_ROWS = 4096


@dataclass(frozen=True)
class Picture:
    """An image to classify.

    Attributes:
        path: what it is called in the output.
        file: where it is, an absolute path or a URI.
        label: the name of its class, if that is known.
    """

    path: str
    file: str
    label: str | None = None


def other_names(card: Mapping[str, Any]) -> dict[str, str]:
    """Return what else the classes of a head are called: further names, and those of folders."""
    classes, names, called = card["class_names"], card.get("names", ()), card.get("called", ())
    return {
        **{other: name for name, own in zip(classes, names, strict=False) for other in own},
        **dict(zip(called, classes, strict=False)),
    }


def find_pictures(
    named: Sequence[str],
    classes: Sequence[str],
    lines: Iterable[str] = (),
    others: Mapping[str, str] | None = None,
) -> Iterator[Picture]:
    """Yield the images that a person names, one after another; none is opened.

    A folder gives all images in it and in its folders, by name. Where the folders in it are called
    as classes, the images in them are labelled. A table is a file that ends in .csv, .tsv,
    .parquet or .jsonl, with a column `path` (or another of `PATH_COLUMNS`) and perhaps a column
    `class` (or another of `LABEL_COLUMNS`); its paths start at its own folder.

    Args:
        named: files, folders, patterns such as `photos/*.jpg`, tables, URIs, or `-` for `lines`.
        classes: the names of the classes, for labels.
        lines: paths, one each.
        others: what else classes are called, each with the class's name.

    Raises:
        InputError: one of them is not there, a folder has no image, a table has no paths, or a
            label is no class.
    """
    known = {canonical_class_name(other): name for other, name in (others or {}).items()}
    known |= {canonical_class_name(name): name for name in classes}
    for text in named:
        if text == STANDARD_INPUT:
            yield from (_picture(line.strip()) for line in lines if line.strip())
            continue
        file = locate(text, Path.cwd())
        if file.lower().endswith(TABLES) and not is_folder(file):
            yield from _of_table(file, known)
        elif is_folder(file):
            yield from _of_folder(text, file, known)
        elif is_uri(file) or exists(file) or not glob.has_magic(text):
            # A file that is not there is an error of its own row.
            yield Picture(text, file)
        else:
            yield from _of_pattern(text)


def _picture(text: str) -> Picture:
    return Picture(text, locate(text, Path.cwd()))


def _of_pattern(pattern: str) -> Iterator[Picture]:
    found = False
    for name in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207
        if os.path.isfile(name) and has_image_suffix(name):  # noqa: PTH113 - a million times
            found = True
            yield _picture(name)
    if not found:
        raise InputError(f"No image matches {pattern}: correct the pattern.")


def _of_folder(text: str, folder: str, known: Mapping[str, str]) -> Iterator[Picture]:
    found = False
    for inside in _walk(folder):
        top, _, rest = inside.partition("/")
        label = known.get(canonical_class_name(top)) if rest else None
        found = True
        yield Picture(join(text, inside), join(folder, inside), label)
    if not found:
        raise InputError(f"There is no image in {text}: name a folder that has some.")


def _walk(
    folder: str, inside: str = "", above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Yield the relative paths of the images below a folder, a listing at a time.

    A link that leads back to a folder which it lies in is not followed.
    """
    place = join(folder, inside) if inside else folder
    if not is_uri(place):
        status = os.stat(place)  # noqa: PTH116 - a path as text, like all here
        if (status.st_dev, status.st_ino) in above:
            return
        above |= {(status.st_dev, status.st_ino)}
    folders, files = list_folder(place)
    for name in files:
        if has_image_suffix(name):
            yield posixpath.join(inside, name)
    for name in folders:
        yield from _walk(folder, posixpath.join(inside, name), above)


def _of_table(file: str, known: Mapping[str, str]) -> Iterator[Picture]:
    folder = file.rpartition("/")[0]
    row = 0
    try:
        for batch in _batches(file):
            names = batch.schema.names
            path_column = _column(file, names, PATH_COLUMNS)
            label_column = _column(file, names, LABEL_COLUMNS, needed=False)
            paths = batch.column(path_column).to_pylist()
            labels = [None] * len(paths)
            if label_column is not None:
                labels = batch.column(label_column).to_pylist()
            for text, label in zip(paths, labels, strict=True):
                row += 1
                if not isinstance(text, str) or not text:
                    raise InputError(f"{file}, row {row} has no path: fill it in, or drop the row.")
                if is_uri(text):
                    check_scheme(text, file)
                place = text if is_uri(text) or text.startswith("/") else join(folder, text)
                yield Picture(text, place, _label(file, row, label, known))
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read as a table of images ({first_line(error)}): correct it."
        ) from error
    if not row:
        raise InputError(f"{file} has no rows: name a table with a path in each.")


def _label(file: str, row: int, label: Any, known: Mapping[str, str]) -> str | None:
    if label is None or label == "":
        return None
    name = known.get(canonical_class_name(str(label)))
    if name is None:
        raise InputError(
            f"{file}, row {row} has the class {label!r}, which the head does not know: it knows "
            f"{', '.join(list(known.values())[:12])}."
        )
    return name


def _column(
    file: str, names: Sequence[str], usual: Sequence[str], needed: bool = True
) -> str | None:
    by_lower = {name.lower(): name for name in reversed(names)}
    found = next((by_lower[name] for name in usual if name in by_lower), None)
    if found is None and needed:
        raise InputError(
            f"{file} has no column {usual[0]!r} (it has {', '.join(map(repr, names))}): name the "
            "column of the paths so."
        )
    return found


def _batches(file: str) -> Iterator[pa.RecordBatch]:
    kind = file.lower().rpartition(".")[2]
    if kind == "parquet":
        with open_input(file) as source:
            present = parquet_schema(source).names
            paths = _column(file, present, PATH_COLUMNS)
            labels = _column(file, present, LABEL_COLUMNS, needed=False)
            names = [name for name in (paths, labels) if name is not None]
            yield from parquet_batches(source, names, _ROWS)
    elif kind == "jsonl":
        with open_input(file) as source:
            yield from _json_batches(source)
    else:
        with open_input(file) as source:
            header = source.read(1 << 16).partition(b"\n")[0].decode()
        delimiter = max(DELIMITERS, key=header.count)
        names = [name.strip('"\r\ufeff') for name in header.split(delimiter)]
        text = dict.fromkeys(names, pa.string())
        with open_input(file) as source:
            yield from pacsv.open_csv(
                source,
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(column_types=text),
            )


def _json_batches(source: Any) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, str]] = []
    for line in _lines(source):
        value = parse_json(line)
        if not isinstance(value, dict):
            raise ValueError(f"a line is no object: {line[:40]!r}")
        rows.append({key: str(value[key]) for key in value if value[key] is not None})
        if len(rows) == _ROWS:
            yield _as_batch(rows)
            rows = []
    if rows:
        yield _as_batch(rows)


def _as_batch(rows: Sequence[Mapping[str, str]]) -> pa.RecordBatch:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [pa.array([row.get(name) for row in rows], pa.string()) for name in names]
    return pa.record_batch(columns, names)


def _lines(source: Any) -> Iterator[str]:
    rest = b""
    while chunk := source.read(1 << 20):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            raise ValueError(f"a line has more than {LONGEST_LINE} bytes")
        yield from (line.decode() for line in whole if line.strip())
    if rest.strip():
        yield rest.decode()
