"""Train, validation and test splits: found by their usual names, or a test split that is drawn."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from safe_ray.data.readers.base import SPLITS
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

SPLIT_OPTIONS = ("split_seed", "test_share")
TRAIN, VAL, TEST = range(len(SPLITS))

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_BY_NAME = {name: split for split, names in _NAMES.items() for name in names}


@dataclass(frozen=True)
class Division:
    """The split of every row.

    Attributes:
        splits: int8, an index into `SPLITS` for each row.
        listed: some of it was drawn here.
        notes: what was done, in sentences.
    """

    splits: np.ndarray
    listed: bool
    notes: tuple[str, ...]

    def tables(self, table: pa.Table) -> dict[str, pa.Table]:
        """Return the rows of each split, in their order."""
        return {
            split: table.take(pa.array(np.flatnonzero(self.splits == number)))
            for number, split in enumerate(SPLITS)
        }


def split_named(name: str) -> str | None:
    """Return the split that a name such as `Validation` stands for."""
    return _BY_NAME.get(name.strip().lower())


def split_in_path(path: str) -> str | None:
    """Return the split that a part of a path names, as in `data-train-0000.tar`, if it is one."""
    words = re.split(r"[^a-z]+", path.lower())
    found = {_BY_NAME[word] for word in words if word in _BY_NAME}
    return found.pop() if len(found) == 1 else None


def splits_of_files(source: str, paths: Sequence[str]) -> list[str | None]:
    """Return the split that the path of each file names, or None for all of them.

    Raises:
        InputError: some files name one and others don't.
    """
    found = [split_in_path(path) for path in paths]
    if None in found and any(found):
        without = paths[found.index(None)]
        named = paths[[split is not None for split in found].index(True)]
        raise InputError(
            f"{source} has files with a split in their names, such as {named}, and others "
            f"without, such as {without}: name train, val or test in all of them, or in none."
        )
    return found


def draw_test(
    paths: Sequence[str], labels: np.ndarray, share: float = 0.3, seed: int = 0
) -> np.ndarray:
    """Choose the images of a test split.

    Of each class the `share`, rounded, comes in the order of the SHA-256 of `<seed>/<path>`, so
    that the choice is the same on every machine, and nearly the same when images are added.

    Args:
        paths: names of the images that do not depend on where they lie.
        labels: int `[n]`.
        share: of each class; at least one image of a class that has two, and never all.
        seed: draws another split.

    Returns:
        bool `[n]`, true for the test split.
    """
    keys = np.fromiter((_key(path, seed) for path in paths), np.uint64, len(paths))
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels, minlength=1)
    chosen = np.floor(counts * share + 0.5).astype(np.int64)
    chosen = np.clip(chosen, np.minimum(counts - 1, 1), counts - 1).clip(0)
    rank = np.arange(len(paths)) - np.repeat(np.cumsum(counts) - counts, counts)
    test = np.zeros(len(paths), bool)
    test[order] = rank < np.repeat(chosen, counts)
    return test


def _key(path: str, seed: int) -> int:
    # One name may be spelt with composed letters on one system and without on another.
    name = path if path.isascii() else unicodedata.normalize("NFC", path)
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])


def divide(
    spec: DatasetSpec, paths: Sequence[str], labels: np.ndarray, found: np.ndarray | None = None
) -> Division:
    """Give every image a split.

    A data set without a test split takes its validation split for one; without either, a part of
    the training images is held out, unless `test_share` is 0, which leaves all as it is. The
    validation split may stay empty.

    Args:
        spec: with the options `split_seed` (0) and `test_share` (0.3).
        paths: names of the images, for drawing.
        labels: int `[n]`.
        found: the splits that the source gives, indices into `SPLITS`; None if it gives none.

    Raises:
        InputError: an option out of range.
    """
    seed, share = _seed(spec), _share(spec)
    if found is None and spec.target_of is not None:
        return Division(np.full(len(paths), TEST, np.int8), listed=True, notes=())
    splits = np.full(len(paths), TRAIN, np.int8) if found is None else found.astype(np.int8)
    if (splits == TEST).any() or share == 0:
        return Division(splits, listed=False, notes=())
    if (splits == VAL).any():
        count = int((splits == VAL).sum())
        splits = np.where(splits == VAL, TEST, splits).astype(np.int8)
        note = f"There was no test split: the validation split, {images(count)}, serves as one."
        return Division(splits, listed=False, notes=(note,))
    splits[draw_test(paths, labels, share, seed)] = TEST
    notes = [
        f"There was no test split: {share * 100:g}% of each class, "
        f"{images(int((splits == TEST).sum()))} in all, were held out with seed {seed}."
    ]
    single = int((np.bincount(labels, minlength=1) == 1).sum())
    if single:
        which = "1 class has" if single == 1 else f"{single} classes have"
        notes.append(f"{which} one image only, which is kept for training: none is left to test.")
    return Division(splits, listed=True, notes=tuple(notes))


def images(count: int) -> str:
    """Return `1 image` or `<count> images`."""
    return "1 image" if count == 1 else f"{count} images"


def _seed(spec: DatasetSpec) -> int:
    seed = spec.options.get("split_seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputError(
            f"Data set {spec.name!r} has options.split_seed={seed!r}: give a whole number."
        )
    return seed


def _share(spec: DatasetSpec) -> float:
    share = spec.options.get("test_share", 0.3)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise InputError(
            f"Data set {spec.name!r} has options.test_share={share!r}: give the part of each "
            "class that is held out for testing, from 0 to less than 1."
        )
    return float(share)
