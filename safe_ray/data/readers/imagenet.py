"""ImageNet and the data sets that only test its heads: a folder of images for each WordNet id.

ImageNet is `images/train/<wnid>/*` and `images/val/<wnid>/*`, where `val` is what everybody tests
on and nobody may choose by: it is the test split, and there is no validation split. Labels follow
the sorted WordNet ids, which are the ids of the classes: two of them are called "missile", and two
"sunglasses". Options: `images`, the folder that paths start at; `test_only`, for a data set whose
class folders lie directly there and make up the test split; `folders`, `wnids` or `numbers` (the
labels 0 to 999, as in ImageNet-V2); `classnames`, files to take the names from, the first that is
there, each with lines `wnid name`. Without one they are open_clip's, after the same authors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from safe_ray.data.locations import exists, first_line, is_folder, join, list_folder, read_bytes
from safe_ray.data.readers.base import FILES_SCHEMA, RawDataset, check_options
from safe_ray.data.readers.official import class_images
from safe_ray.data.readers.places import check_folders, inside
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

TRAIN, TEST = "train", "val"
FOLDERS = ("wnids", "numbers")
EMPTY = pa.table({name: [] for name in FILES_SCHEMA.names}, schema=FILES_SCHEMA)


def read(spec: DatasetSpec, location: str) -> RawDataset:
    """Read the data set; its classes are those that have a folder.

    Raises:
        InputError: a missing folder, one without class folders, a folder that is no class of
            ImageNet, or one that has test images only.
    """
    images, parts, numbered = _layout(spec, location)
    check_folders(spec, (location, images, *(join(images, part) for part in parts if part)))
    names, origin = _class_names(spec, location)
    wnids = sorted(names)
    folders = {part: _class_folders(join(images, part), numbered) for part in parts}
    for part, found in folders.items():
        for name in found:
            known = 0 <= int(name) < len(wnids) if numbered else name in names
            if not known:
                raise InputError(
                    f"Data set {spec.name!r}: the folder {join(join(images, part), name)} is none "
                    f"of the {len(wnids)} classes of {origin}: take it away, or name it there."
                )
    first = next(iter(folders.values()))
    for part, found in folders.items():
        strange = next((name for name in found if name not in set(first)), None)
        if strange is not None:
            raise InputError(
                f"Data set {spec.name!r}: {join(join(images, part), strange)} has no counterpart "
                f"among the classes in {join(images, TRAIN)}: complete them, or take it away."
            )
    ids = tuple(wnids[int(name)] if numbered else name for name in first)
    labels = {name: label for label, name in enumerate(first)}
    tables = {part: _table(images, part, found, labels) for part, found in folders.items()}
    return RawDataset(
        source=images,
        classes=tuple(names[wnid] for wnid in ids),
        tables={
            "train": tables.get(TRAIN, EMPTY),
            "val": EMPTY,
            "test": tables.get(TEST, tables.get("", EMPTY)),
        },
        ids=ids,
        listed=True,
        notes=tuple(_notes(parts, origin)),
    )


def take_stock(spec: DatasetSpec, location: str) -> tuple[list[str], list[str]]:
    """Return what of the data set is there, and what must still be put there."""
    images, parts, _ = _layout(spec, location)
    folders = [join(images, name) if name else images for name in parts]
    found = [folder for folder in folders if is_folder(folder)]
    found += [file for file in _name_files(spec, location) if exists(file)][:1]
    return found, [folder for folder in folders if not is_folder(folder)]


def _layout(spec: DatasetSpec, location: str) -> tuple[str, tuple[str, ...], bool]:
    """Return the folder of images, the folders in it with those of the classes, and numbered."""
    check_options(spec, ("images", "test_only", "folders", "classnames"))
    test_only = spec.options.get("test_only", False)
    if not isinstance(test_only, bool):
        raise InputError(
            f"Data set {spec.name!r} has options.test_only={test_only!r}: use true or false."
        )
    folders = spec.options.get("folders", "wnids")
    if folders not in FOLDERS:
        raise InputError(
            f"Data set {spec.name!r} has options.folders={folders!r}: use one of "
            f"{', '.join(map(repr, FOLDERS))}."
        )
    images = inside(location, str(spec.options.get("images", "images")))
    return images, ("",) if test_only else (TRAIN, TEST), folders == "numbers"


def _class_folders(folder: str, numbered: bool) -> list[str]:
    """Return the names of the class folders in the order of their labels."""
    names, files = list_folder(folder)
    if not names:
        what = f"{len(files)} files and no folder" if files else "nothing"
        raise InputError(
            f"{folder} holds {what}: sort its images into one folder a class, named by "
            f"{'its number' if numbered else 'its WordNet id, such as n01440764'}."
        )
    if not numbered:
        return names
    for name in names:
        if not (name.isascii() and name.isdecimal()):
            raise InputError(
                f"{folder} has the folder {name!r}, and its folders are labels such as 0 or 999: "
                "take it away, or leave out options.folders if they are WordNet ids."
            )
    return sorted(names, key=int)


def _name_files(spec: DatasetSpec, location: str) -> list[str]:
    files = spec.options.get("classnames", ["classnames.txt"])
    files = [files] if isinstance(files, str) else files
    return [inside(location, str(file)) for file in files]


def _class_names(spec: DatasetSpec, location: str) -> tuple[dict[str, str], str]:
    """Return the name of each WordNet id, and where the names come from."""
    file = next((file for file in _name_files(spec, location) if exists(file)), None)
    if file is None:
        return _shipped_names(), "open_clip"
    try:
        lines = read_bytes(file).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}): fetch it again.") from error
    names: dict[str, str] = {}
    for row, line in enumerate(lines, start=1):
        wnid, _, name = line.strip().partition(" ")
        if not wnid:
            continue
        if not name.strip() or wnid in names:
            raise InputError(
                f"{file}, line {row} is {line!r}: each line must be a WordNet id of its own, a "
                "space and the class name."
            )
        names[wnid] = name.strip()
    return names, file


def _shipped_names() -> dict[str, str]:
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    # Both are in the order of the labels of the ImageNet challenge, that of the sorted ids.
    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))


def _table(images: str, part: str, folders: Sequence[str], labels: Mapping[str, int]) -> pa.Table:
    paths: list[str] = []
    counts: list[int] = []
    prefix = f"{part}/" if part else ""
    for folder in folders:
        inside = f"{prefix}{folder}"
        names = class_images(join(images, inside))
        paths += [f"{inside}/{name}" for name in names]
        counts.append(len(names))
    numbers = np.repeat(np.array([labels[folder] for folder in folders], np.int32), counts)
    files = [join(images, path) for path in paths]
    return pa.table({"path": paths, "label": numbers, "file": files}, schema=FILES_SCHEMA)


def _notes(parts: Sequence[str], origin: str) -> list[str]:
    notes = [f"The class names are those of {origin}."]
    if TEST in parts:
        notes.append(
            f"The folder {TEST} is the test split, as everybody's, and there is no validation "
            "split."
        )
    return notes
