"""What every reader returns, and what readers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from safe_ray.errors import InputError, nearest
from safe_ray.specs import DatasetSpec

SPLITS = ("train", "val", "test")

BYTES_SCHEMA = pa.schema(
    [("path", pa.string()), ("label", pa.int32()), ("image", pa.large_binary())]
)
FILES_SCHEMA = pa.schema([("path", pa.string()), ("label", pa.int32()), ("file", pa.string())])
RANGES_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.int32()),
        ("file", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


@dataclass(frozen=True)
class RawDataset:
    """A data set as it was read, before the checks that all formats share.

    Attributes:
        source: the file that holds the labels, to name in errors.
        classes: the class names; a label is an index into them.
        tables: a table for each of `SPLITS`, with `BYTES_SCHEMA`, `FILES_SCHEMA` or
            `RANGES_SCHEMA`; the order of the rows is that of the source, for episodes are drawn
            by it.
        ids: what the source calls the classes (folders, WordNet ids), in the order of their
            labels; with it, two classes may have one name.
        listed: the split was not written down anywhere but made from a listing of files, so that
            it is worth keeping.
        notes: what was assumed in reading, each a sentence for the person whose data it is.
    """

    source: str
    classes: tuple[str, ...]
    tables: Mapping[str, pa.Table]
    ids: tuple[str, ...] | None = None
    listed: bool = False
    notes: tuple[str, ...] = ()


def check_options(spec: DatasetSpec, known: Iterable[str]) -> None:
    """Refuse options that the format does not have, rather than ignore them."""
    known = tuple(known)
    for option in spec.options:
        if option not in known:
            raise InputError(
                f"Data set {spec.name!r} has the unknown option {option!r}: format "
                f"{spec.format!r} knows {', '.join(map(repr, known))}.{nearest(option, known)}"
            )


def chosen_classes(spec: DatasetSpec) -> tuple[str, ...] | None:
    """Return what the classes under `options.classes` are called in the source, label by label.

    A list has their names; a mapping leads from what the source calls them, such as folders or
    numbers, to their names. A class of several names has a list of them; in a list of classes it is
    called by the first.
    """
    names: Any = spec.options.get("classes")
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence | Mapping):
        raise InputError(
            f"Data set {spec.name!r} has options.classes={names!r}: give a list of class names, or "
            "a mapping from what its folders or labels are called to class names."
        )
    values = names.values() if isinstance(names, Mapping) else names
    firsts = [_names(spec, value)[0] for value in values]
    return tuple(map(str, names)) if isinstance(names, Mapping) else tuple(firsts)


def _names(spec: DatasetSpec, value: Any) -> tuple[str, ...]:
    """Return the names of a class, which has one or several."""
    names = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not names:
        raise InputError(
            f"Data set {spec.name!r} has a class with an empty list of names under "
            "options.classes: give it one."
        )
    for name in names:
        if not isinstance(name, str):
            raise InputError(
                f"Data set {spec.name!r} lists the class {name!r}, which YAML does not read as "
                "text: put it in quotes."
            )
    return names


def all_names(spec: DatasetSpec) -> tuple[tuple[str, ...], ...]:
    """Return every name of each class under `options.classes`, label by label; or nothing."""
    if chosen_classes(spec) is None:
        return ()
    classes: Any = spec.options["classes"]
    values = classes.values() if isinstance(classes, Mapping) else classes
    return tuple(_names(spec, value) for value in values)


def class_names(spec: DatasetSpec) -> tuple[str, ...] | None:
    """Return the names of the classes under `options.classes`, label by label.

    A class of several names is called by the first.
    """
    return tuple(names[0] for names in all_names(spec)) or None
