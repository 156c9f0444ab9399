"""A folder of class folders, with or without folders for the splits above them.

    cat/1.jpg            train/cat/1.jpg
    dog/sub/7.png        Validation/dog/7.png

Folders inside a class folder belong to that class. A single folder around everything is looked
through. Where the folders below could as well be the classes, the option `class_level` (1, 2, ...,
counted below the split folders) says which they are. Classes are named after their folders, and
labels follow the sorted names, or the option `classes`. Splits are `train`, `val` (`valid`,
`validation`) and `test`, in any case. Without a test split the validation split is taken for one;
without either, `test_share` (0.3) of each class is held out, drawn with `split_seed` (0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from safe_ray.data.images import has_image_suffix
from safe_ray.data.locations import is_folder, join, list_folder, walk
from safe_ray.data.readers.base import (
    FILES_SCHEMA,
    SPLITS,
    RawDataset,
    check_options,
    chosen_classes,
)
from safe_ray.data.readers.labels import CLASSES_FILE, label_classes
from safe_ray.data.readers.splitting import SPLIT_OPTIONS, divide, images, split_named
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

_NAMED_FOLDERS = 5


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; no image is opened.

    Raises:
        InputError: a missing folder, no image in a class folder, images beside split folders in
            place of classes, two folders for one split, nested folders of which either level could
            be the classes, or a class that `options.classes` lacks.
    """
    check_options(spec, ("class_level", "classes", *SPLIT_OPTIONS))
    level = _class_level(spec)
    if not is_folder(location):
        raise InputError(
            f"Data set {spec.name!r}: there is no folder {location}; put it there, correct its "
            "path, or name the folder of your data sets with data.root=<folder>."
        )
    top, loose = list_folder(location)
    if level is None and (inner := _only_folder(spec, location, top)):
        raw = read(spec, inner)
        images, others = _by_suffix(loose)
        notes = (
            f"All folders lie in {inner}, and so the classes are looked for in there.",
            *_left_out(location, images, _without_names(spec, others)),
        )
        return replace(raw, notes=(*notes, *raw.notes))
    paths = walk(location)
    found, others = _by_suffix(paths)
    splits = _split_folders(spec, location, top, found)
    layout = _layout(location, splits, top, found, level or 1)
    nested = _nested_notes(spec, location, layout) if level is None else ()
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
    below = "/*" * ((level or 1) - 1)
    notes = (
        f"{len(labelling.classes)} classes, named after the folders in {where}{below}.",
        *nested,
        *labelling.notes,
        *division.notes,
        *_left_out(location, layout.outside, _without_names(spec, others)),
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
    inner: Mapping[str, set[str]]
    """The names of the folders with images in each class folder; "" for its own images."""


def _class_level(spec: DatasetSpec) -> int | None:
    level = spec.options.get("class_level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int) or level < 1):
        raise InputError(
            f"Data set {spec.name!r} has options.class_level={level!r}: give 1 if the classes are "
            "the first level of folders (below train, val and test), 2 for the second, and so on."
        )
    return level


def _only_folder(spec: DatasetSpec, location: str, top: Sequence[str]) -> str | None:
    """The one folder in `location`, if it has folders rather than images and is no class itself."""
    if len(top) != 1 or split_named(top[0]) or top[0] in (chosen_classes(spec) or ()):
        return None
    inner = join(location, top[0])
    folders, files = list_folder(inner)
    return inner if folders and not any(map(has_image_suffix, files)) else None


def _nested_notes(spec: DatasetSpec, location: str, layout: _Layout) -> tuple[str, ...]:
    """Say which level of nested folders is taken for the classes.

    Raises:
        InputError: it could as well be the other one. A folder in a class folder that is called
            like another class, or several names that are in all class folders again and again,
            look like classes, too.
    """
    nested = {name: folders for name, folders in layout.inner.items() if "" not in folders}
    if not nested or chosen_classes(spec) is not None:
        return ()
    where = ", ".join(f"{name}/{min(folders)}" for name, folders in sorted(nested.items())[:3])
    uses = Counter(folder for folders in nested.values() for folder in folders)
    repeated = sorted(folder for folder, count in uses.items() if count > 1)
    alike = [
        folder
        for name, folders in nested.items()
        for folder in sorted(folders - {name})
        if folder in layout.inner
    ]
    upper, lower = sorted(layout.inner), sorted(uses)
    if alike or (len(nested) == len(layout.inner) > 1 and len(repeated) > 1):
        raise InputError(
            f"{location} has images in folders of folders, such as {where}, and either could be "
            f"the classes: choose {_listed(upper)} with options.class_level=1, or {_listed(lower)} "
            "with options.class_level=2"
            + (
                "; or give every class one folder, in one place."
                if len(nested) < len(layout.inner)
                else "."
            )
        )
    partly = len(nested) < len(layout.inner)
    whose = f"{len(nested)} of these" if partly else "These"
    has, own = ("has", "its") if partly and len(nested) == 1 else ("have", "their")
    return (
        f"{whose} {has} no images of {own} own, but folders of images (such as {where}): all of "
        "them count for the class of the outer folder. If the inner folders are the classes, set "
        "options.class_level=2.",
    )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED_FOLDERS
    return ", ".join(map(repr, names[:_NAMED_FOLDERS])) + (f" and {rest} more" if rest > 0 else "")


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
    location: str,
    splits: Mapping[str, str],
    top: Sequence[str],
    found: Sequence[str],
    level: int,
) -> _Layout:
    depth = (1 if splits else 0) + level - 1
    # An empty folder is a class without images, which the manifest refuses by its name.
    classes = set(top) if level == 1 else set()
    if splits and level == 1:
        classes = {name for folder in splits for name in list_folder(join(location, folder))[0]}
    paths: list[str] = []
    class_names: list[str] = []
    numbers: list[int] = []
    outside: list[str] = []
    inner: dict[str, set[str]] = {}
    for path in found:
        parts = path.split("/", depth + 2)
        if len(parts) < depth + 2 or (splits and parts[0] not in splits):
            outside.append(path)
            continue
        paths.append(path)
        class_names.append(parts[depth])
        classes.add(parts[depth])
        inner.setdefault(parts[depth], set()).add(parts[depth + 1] if parts[depth + 2 :] else "")
        if splits:
            numbers.append(SPLITS.index(splits[parts[0]]))
    if not paths:
        raise InputError(
            f"{location} has no image in a class folder: put the images of each class into a "
            "folder of its name, or give a table of paths and labels."
        )
    return _Layout(
        classes, paths, class_names, np.array(numbers, np.int8) if splits else None, outside, inner
    )


def _by_suffix(files: Sequence[str]) -> tuple[list[str], set[str]]:
    found = [name for name in files if has_image_suffix(name)]
    return found, set(files) - set(found)


def _without_names(spec: DatasetSpec, others: set[str]) -> set[str]:
    """Return the files that are no images, without the one that the class names are from."""
    return others - {CLASSES_FILE} if chosen_classes(spec) is not None else others


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
