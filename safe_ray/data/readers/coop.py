"""CoOp's layout: a folder of images, and a split file `split_zhou_<name>.json` beside it.

The split file has the keys `train`, `val` and `test`, each a list of `[path, label, class name]`
(https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md). Options: `split`, the split file, and
`images`, the folder that its paths start at (by default the data set's own), both relative to the
data set's path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from safe_ray.data.readers.base import (
    FILES_SCHEMA,
    SPLITS,
    RawDataset,
    check_options,
    chosen_classes,
)
from safe_ray.errors import InputError
from safe_ray.files import resolve_path
from safe_ray.specs import DatasetSpec

LARGEST_INT32 = 2**31 - 1

Entry = tuple[str, int, str]


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set.

    Raises:
        InputError: a missing folder or file, a file that is not JSON of that shape, labels that
            leave a gap, or one label with two names.
    """
    check_options(spec, ("split", "images", "classes"))
    if "split" not in spec.options:
        raise InputError(
            f"Data set {spec.name!r} in format 'coop' needs options.split, the name of its split "
            "file, such as split_zhou_EuroSAT.json."
        )
    folder = _existing(spec, Path(location), "folder")
    images = _existing(spec, resolve_path(str(spec.options.get("images", ".")), folder), "folder")
    file = _existing(spec, resolve_path(str(spec.options["split"]), folder), "file")
    entries = _parse(file)
    classes = chosen_classes(spec) or _class_names(entries, file)
    return RawDataset(
        source=str(file),
        classes=classes,
        tables={split: _table(rows, images) for split, rows in entries.items()},
    )


def _existing(spec: DatasetSpec, path: Path, kind: str) -> Path:
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise InputError(
            f"Data set {spec.name!r}: there is no {kind} {path}; put it there, correct the path "
            "and options of the data set, or name the folder of your data sets with "
            "data.root=<folder>."
        )
    return path


def _parse(file: Path) -> dict[str, list[Entry]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The split file {file} is not readable JSON ({error}): fetch it again."
        ) from error
    if not isinstance(content, Mapping) or "train" not in content:
        raise InputError(
            f"The split file {file} has no list 'train': it must have the keys 'train', 'val' and "
            "'test', each a list of [path, label, class name]."
        )
    return {
        split: [
            _entry(value, f"{file}, split {split!r}, row {row}")
            for row, value in enumerate(_list(content.get(split, []), file, split))
        ]
        for split in SPLITS
    }


def _list(value: Any, file: Path, split: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(
            f"The split file {file} has something else than a list under {split!r}: it must be a "
            "list of [path, label, class name]."
        )
    return value


def _entry(value: Any, where: str) -> Entry:
    match value:
        case [str(path), int(label), str(name)] if not isinstance(label, bool):
            if 0 <= label <= LARGEST_INT32:
                return path, label, name
            raise InputError(f"{where} has the label {label}: labels count up from 0; correct it.")
    raise InputError(f"{where} is {value!r}: it must be [path, label, class name]; correct it.")


def _class_names(entries: Mapping[str, list[Entry]], file: Path) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for split, rows in entries.items():
        for row, (_, label, name) in enumerate(rows):
            if names.setdefault(label, name) != name:
                raise InputError(
                    f"{file}, split {split!r}, row {row} names class {label} {name!r}, but it was "
                    f"{names[label]!r} before: give each label one name."
                )
    for expected, label in enumerate(sorted(names)):
        if label != expected:
            raise InputError(
                f"{file} has the label {label} but no sample of label {expected}: the labels of "
                f"its {len(names)} classes must run from 0 to {len(names) - 1}."
            )
    return tuple(names[label] for label in sorted(names))


def _table(rows: list[Entry], images: Path) -> pa.Table:
    return pa.table(
        {
            "path": [path for path, _, _ in rows],
            "label": [label for _, label, _ in rows],
            "file": [str(images / path) for path, _, _ in rows],
        },
        schema=FILES_SCHEMA,
    )
