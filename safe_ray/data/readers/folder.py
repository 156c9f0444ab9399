"""A folder of class folders, with or without folders for the splits above them.

    cat/1.jpg            train/cat/1.jpg
    dog/sub/7.png        Validation/dog/7.png

Folders inside a class folder belong to that class. Classes are named after their folders, and
labels follow the sorted names, or the option `classes`. Splits are `train`, `val` (`valid`,
`validation`) and `test`, in any case. Without a test split the validation split is taken for one;
without either, `test_share` (0.3) of each class is held out, drawn with `split_seed` (0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import is_folder, join, list_folder, walk
from safe_ray.data.readers.base import FILES_SCHEMA, SPLITS, RawDataset, check_options
from safe_ray.data.readers.labels import label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide, images, split_named
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; no image is opened.

    Raises:
        InputError: a missing folder, no image in a class folder, images beside split folders in
            place of classes, two folders for one split, or a class that `options.classes` lacks.
    """
    check_options(spec, ("classes", *SPLIT_OPTIONS))
    if not is_folder(location):
        raise InputError(
            f"Data set {spec.name!r}: there is no folder {location}; put it there, correct its "
            "path, or name the folder of your data sets with data.root=<folder>."
        )
    top, _ = list_folder(location)
    paths = walk(location)
    found = [path for path in paths if has_image_suffix(path)]
    splits = _split_folders(spec, location, top, found)
    layout = _layout(location, splits, top, found)
    labelling = label_classes(spec, location, layout.classes)
    labels = np.array([labelling.labels[name] for name in layout.class_names], np.int32)
    division = divide(spec, layout.paths, labels, layout.splits)
    table = pa.table(
        {
            "path": layout.paths,
            "label": labels,
            "file": [join(location, path) for path in layout.paths],
        },
        schema=FILES_SCHEMA,
    )
    where = f"{location}/{'|'.join(splits)}" if splits else location
    notes = (
        f"{len(labelling.classes)} classes, named after the folders in {where}.",
        *labelling.notes,
        *division.notes,
        *_left_out(location, layout.outside, set(paths) - set(found)),
    )
    return RawDataset(
        source=location,
        classes=labelling.classes,
        tables=division.tables(table),
        listed=division.listed,
        notes=notes,
    )


@dataclass(frozen=True)
class _Layout:
    classes: set[str]
    paths: list[str]
    class_names: list[str]
    splits: np.ndarray | None
    outside: list[str]


def _split_folders(
    spec: DatasetSpec, location: str, top: Sequence[str], found: Sequence[str]
) -> dict[str, str]:
    """The folders that are splits, or none if they are classes with the names of splits."""
    named = {folder: split for folder in top if (split := split_named(folder)) is not None}
    nested = {path.partition("/")[0] for path in found if path.count("/") >= 2}
    if len(named) < len(top) and len(set(named.values())) < 2:
        return {}
    if not nested & set(named):
        if named and len(named) == len(top) and found:
            raise InputError(
                f"{location} has the split folders {', '.join(map(repr, named))}, but no class "
                "folders with images in them: make one for each class, or give a table of paths "
                "and labels."
            )
        return {}
    first: dict[str, str] = {}
    for folder, split in named.items():
        if split in first:
            raise InputError(
                f"{location} has two folders for the {split} split, {first[split]!r} and "
                f"{folder!r}: merge them."
            )
        first[split] = folder
    if "train" not in first and spec.target_of is None:
        if len(named) < len(top):
            return {}
        raise InputError(
            f"{location} has the split folders {', '.join(map(repr, named))} and no folder "
            "'train': add it, or give a folder of class folders."
        )
    return named


def _layout(
    location: str, splits: Mapping[str, str], top: Sequence[str], found: Sequence[str]
) -> _Layout:
    depth = 1 if splits else 0
    classes = set(top)
    if splits:
        classes = {name for folder in splits for name in list_folder(join(location, folder))[0]}
    paths: list[str] = []
    class_names: list[str] = []
    numbers: list[int] = []
    outside: list[str] = []
    for path in found:
        parts = path.split("/", depth + 1)
        if len(parts) < depth + 2 or (splits and parts[0] not in splits):
            outside.append(path)
            continue
        paths.append(path)
        class_names.append(parts[depth])
        if splits:
            numbers.append(SPLITS.index(splits[parts[0]]))
    if not paths:
        raise InputError(
            f"{location} has no image in a class folder: put the images of each class into a "
            "folder of its name, or give a table of paths and labels."
        )
    return _Layout(
        classes, paths, class_names, np.array(numbers, np.int8) if splits else None, outside
    )


def _left_out(location: str, outside: Sequence[str], others: set[str]) -> list[str]:
    notes = []
    if outside:
        notes.append(
            f"Left out of {location}: {images(len(outside))} in no class folder, such as "
            f"{outside[0]}."
        )
    if others:
        suffixes = Counter(_suffix(path) for path in others)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items())[:5])
        notes.append(
            f"Left out of {location}: {len(others)} {'file' if len(others) == 1 else 'files'} "
            f"without the suffix of an image ({kinds}{', ...' if len(suffixes) > 5 else ''})."
        )
    return notes


def _suffix(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() if stem else "without one"
