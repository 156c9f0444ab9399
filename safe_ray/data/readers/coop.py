"""CoOp's layout: a folder of images, and a split file `split_zhou_<name>.json` beside it.

The split file has the keys `train`, `val` and `test`, each a list of `[path, label, class name]`
(https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md). Options: `split`, the split file, and
`images`, the folder that its paths start at (by default the data set's own), both relative to the
data set's path; `official`, a key of `safe_ray.data.readers.official.KINDS`, to read the lists of
the data set's authors where there is no split file; `classes`, other names for the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from safe_ray.data.locations import exists, first_line, is_folder, join, read_bytes
from safe_ray.data.readers.base import (
    FILES_SCHEMA,
    SPLITS,
    RawDataset,
    check_options,
    class_names,
)
from safe_ray.data.readers.official import KINDS, Kind, Lists, Place, Sample
from safe_ray.data.readers.places import HERE, check_folders, inside, remedy
from safe_ray.errors import InputError, nearest
from safe_ray.outside import LARGEST_JSON, parse_json
from safe_ray.specs import DatasetSpec

LARGEST_INT32 = 2**31 - 1

Entry = tuple[str, int, str]


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set.

    Raises:
        InputError: a missing folder, neither the split file nor the official lists, a file that
            is not JSON of that shape, labels that leave a gap, or one label with two names.
    """
    check_options(spec, ("split", "images", "classes", "official"))
    kind = _kind(spec)
    if "split" not in spec.options and kind is None:
        raise InputError(
            f"Data set {spec.name!r} in format 'coop' needs options.split, the name of its split "
            "file, such as split_zhou_EuroSAT.json."
        )
    images = inside(location, str(spec.options.get("images", HERE)))
    check_folders(spec, (location, images))
    split = _split(spec, location)
    if split is not None and exists(split):
        entries = _parse(split)
        return RawDataset(
            source=split,
            classes=class_names(spec) or _class_names(entries, split),
            tables={
                name: _table([(path, label) for path, label, _ in rows], images)
                for name, rows in entries.items()
            },
        )
    if kind is None or (absent := _absent(kind, location)):
        raise InputError(
            f"Data set {spec.name!r}: there is no file "
            + (f"{split}" if kind is None else _either(split, kind, absent, location))
            + f"; {remedy(spec)}"
        )
    lists = kind.read(Place(location, images))
    return RawDataset(
        source=join(location, kind.files[0]) if kind.files else images,
        classes=class_names(spec) or lists.classes,
        tables={name: _table(getattr(lists, name), images) for name in SPLITS},
        listed=bool(lists.drawn),
        notes=tuple(_notes(spec, kind, lists)),
    )


def take_stock(spec: DatasetSpec, location: str) -> tuple[list[str], list[str]]:
    """Return what of the data set is there, and what must still be put there.

    No list is read, so that this answers at once for any size.
    """
    kind, split = _kind(spec), _split(spec, location)
    images = inside(location, str(spec.options.get("images", HERE)))
    found, missing = ([images], []) if is_folder(images) else ([], [images])
    if split is not None and exists(split):
        found.append(split)
    elif kind is None or (absent := _absent(kind, location)):
        missing.append(f"{split}" if kind is None else _either(split, kind, absent, location))
    elif kind.files or found:
        found.append(_official(kind) + (f" in place of {split}" if split is not None else ""))
    return found, missing


def _kind(spec: DatasetSpec) -> Kind | None:
    name = spec.options.get("official")
    if name is not None and name not in KINDS:
        raise InputError(
            f"Data set {spec.name!r} has options.official={name!r}: the official lists that can "
            f"be read are {', '.join(KINDS)}.{nearest(str(name), KINDS)}"
        )
    return None if name is None else KINDS[name]


def _split(spec: DatasetSpec, location: str) -> str | None:
    name = spec.options.get("split")
    return None if name is None else inside(location, str(name))


def _absent(kind: Kind, location: str) -> list[str]:
    return [file for file in kind.files if not exists(join(location, file))]


def _official(kind: Kind) -> str:
    return f"the official lists {', '.join(kind.files)}" if kind.files else "the class folders"


def _either(split: str | None, kind: Kind, absent: Sequence[str], location: str) -> str:
    """Return what is missing where either a split file or the official lists would do."""
    lists = f"{_official(kind)} in {location} (missing: {', '.join(absent)})"
    return lists if split is None else f"{split}, and neither are {lists}"


def _notes(spec: DatasetSpec, kind: Kind, lists: Lists) -> Iterator[str]:
    if "split" in spec.options:
        yield (
            f"There is no split file {spec.options['split']}, so {_official(kind)} were read: its "
            "episodes are other ones than those of CoOp's split."
        )
    if lists.drawn:
        yield f"The split was drawn, for {_official(kind)} leave it open: {lists.drawn}."


def _parse(file: str) -> dict[str, list[Entry]]:
    try:
        content = parse_json(read_bytes(file, largest=LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The split file {file} is not readable JSON ({first_line(error)}): fetch it again."
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


def _list(value: Any, file: str, split: str) -> list[Any]:
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


def _class_names(entries: Mapping[str, list[Entry]], file: str) -> tuple[str, ...]:
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


def _table(samples: Sequence[Sample], images: str) -> pa.Table:
    return pa.table(
        {
            "path": [path for path, _ in samples],
            "label": [label for _, label in samples],
            "file": [join(images, path) for path, _ in samples],
        },
        schema=FILES_SCHEMA,
    )
