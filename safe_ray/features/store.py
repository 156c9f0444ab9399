"""The feature store: dense maps on shared storage, content-addressed and memory-mapped.

    <root>/<key digest>/key.json             what made these maps
                        part-<digest>.arrow  the rows of one write, see `safe_ray.features.parts`
                        index.arrow          the key columns of many parts; may be absent
                        *.damaged            parts that were damaged, set aside

A part appears under its name only when it is whole, and its name is derived from the rows in it, so
that any number of processes may write at once, and writing the same rows again changes nothing.
No map is given out before it matched its checksum once in the life of the store object.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from safe_ray.errors import InputError
from safe_ray.features.index import INDEX_NAME, PartKeys, read_index, write_index
from safe_ray.features.inventory import no_progress
from safe_ray.features.lookup import Lookup
from safe_ray.features.parts import (
    Damage,
    DamagedPart,
    Part,
    list_parts,
    open_part,
    set_aside,
    write_part,
)
from safe_ray.files import digest_json, write_atomically
from safe_ray.progress import Progress

KEY_NAME = "key.json"

# Below this many parts, opening each costs less than a reader notices.
_INDEX_AFTER_PARTS = 64
# A process may hold some 65,000 memory maps in all, and others need them too.
_MAX_OPEN_PARTS = 4096


class MissingFeatures(InputError):
    """Dense maps that were asked for are not in the store, or not any more."""


@dataclass(frozen=True)
class StoreKey:
    """Everything that decides the value of a dense map, besides the image and the view.

    Attributes:
        trunk_digest: digest of the trunk's weights and configuration.
        preprocessing: the evaluation transform as JSON values.
        precision: the arithmetic of the trunk: `fp32`, `bf16` or `fp16`.
        augmentation: the version of the recipe behind views 1 and up.
    """

    trunk_digest: str
    preprocessing: Mapping[str, Any]
    precision: str
    augmentation: str

    @property
    def digest(self) -> str:
        """The name of the store's folder: 16 hexadecimal digits."""
        return digest_json(self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The key as JSON values."""
        return {
            "trunk_digest": self.trunk_digest,
            "preprocessing": dict(self.preprocessing),
            "precision": self.precision,
            "augmentation": self.augmentation,
        }


class FeatureStore:
    """Dense maps of one backbone, one preprocessing and one precision.

    A row is one view of one image, `[tokens, width]` in float16. Opening a store only reads; the
    folder is made by the first write. Not safe for several threads at once; any number of
    processes, on any number of nodes that share `root`, may read and write.

    Args:
        root: the folder of all feature stores.
        key: what made the maps.
        tokens: L, the tokens of a dense map.
        width: C, the channels of a token.

    Attributes:
        damage: the parts that this object found damaged; their rows count as missing.
    """

    def __init__(self, root: Path, key: StoreKey, tokens: int, width: int) -> None:
        self.key = key
        self.tokens = tokens
        self.width = width
        self.folder = Path(root) / key.digest
        self.damage: list[Damage] = []
        self._parts: dict[str, PartKeys] = {}
        self._open: dict[str, Part] = {}
        self._lookup: Lookup | None = None
        self.refresh()

    def __len__(self) -> int:
        """The number of distinct (sample, view) pairs in the store."""
        return len(self._rows())

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one dense map."""
        return self.tokens * self.width * 2

    def refresh(self) -> None:
        """Pick up the parts that others wrote, and drop those that are gone.

        A part that is truncated or is not what it should be is renamed to `*.damaged`, and its rows
        count as missing.

        Raises:
            InputError: the operating system refuses to read the folder or a part.
        """
        listed = list_parts(self.folder)
        unknown = [
            name
            for name, size in listed.items()
            if name not in self._parts or self._parts[name].size != size
        ]
        kept = {name: part for name, part in self._parts.items() if name in listed}
        if not unknown and len(kept) == len(self._parts):
            return
        remembered = read_index(self.folder) if len(unknown) >= _INDEX_AFTER_PARTS else {}
        opened = 0
        for name in unknown:
            kept.pop(name, None)
            self._open.pop(name, None)
            known = remembered.get(name)
            if known is not None and known.size == listed[name]:
                kept[name] = known
                continue
            try:
                kept[name] = self._read_keys(name, listed[name])
                opened += 1
            except DamagedPart as damaged:
                self.damage.append(set_aside(self.folder / name, damaged))
            except FileNotFoundError:
                continue
        self._parts = kept
        self._open = {name: part for name, part in self._open.items() if name in kept}
        self._lookup = None
        if opened >= _INDEX_AFTER_PARTS:
            write_index(self.folder, kept)

    def missing(self, samples: Sequence[str], views: Sequence[int]) -> list[tuple[str, int]]:
        """Return the (sample, view) pairs that are not in the store.

        Every sample is paired with every view, samples first; the order is kept and a pair is
        named once.
        """
        samples = list(dict.fromkeys(samples))
        views = list(dict.fromkeys(int(view) for view in views))
        _, found = self._rows().locate(samples, _every(views, len(samples)))
        return [(samples[row], views[column]) for row, column in np.argwhere(~found)]

    def check(
        self,
        wanted: Iterable[tuple[Sequence[str], Sequence[int]]],
        progress: Progress = no_progress,
    ) -> None:
        """Compare the maps of `wanted`, as far as they are here, with their checksums.

        What was checked before by this object is not read again. Damaged parts are set aside, so
        that their rows are missing.

        Args:
            wanted: pairs of samples and views, each sample in every view.
            progress: called with maps, after each part.

        Raises:
            InputError: the operating system refuses to read a part.
        """
        wanted = list(wanted)
        began, damaged = time.monotonic(), True
        # A pair of a part that was set aside may be in another part as well.
        while damaged:
            damaged = False
            found = [
                self._rows().locate(samples, _every(views, len(samples)))
                for samples, views in wanted
            ]
            places = np.concatenate([np.zeros(0, np.int64), *(at[known] for at, known in found)])
            done = 0
            for name, rows, _ in list(self._rows().by_part(np.unique(places))):
                try:
                    self._checked_maps(name, rows)
                except MissingFeatures:
                    damaged = True
                done += len(rows)
                spent = time.monotonic() - began
                progress(done, len(places), spent / done * (len(places) - done))

    def write_key(self) -> None:
        """Leave `key.json` beside the parts, for people who wonder what a folder holds."""
        path = self.folder / KEY_NAME
        if not path.exists():
            write_atomically(path, json.dumps(self.key.as_json(), indent=2, sort_keys=True) + "\n")

    def write_part(self, samples: Sequence[str], views: Sequence[int], maps: np.ndarray) -> Path:
        """Write `maps` (float16 `[n, L, C]`), row i being view `views[i]` of `samples[i]`.

        Returns:
            The path of the part. It appears there only when it is whole, and writing the same rows
            twice leaves one file.

        Raises:
            InputError: the folder cannot be written to, the disk is full, or a map holds a value
                that is not finite.
        """
        if maps.shape != (len(samples), self.tokens, self.width) or len(views) != len(samples):
            raise ValueError(
                f"Expected maps of {(len(samples), self.tokens, self.width)} for {len(samples)} "
                f"samples and {len(views)} views, got {maps.shape}."
            )
        self.write_key()
        path = write_part(self.folder, samples, views, maps)
        with contextlib.suppress(DamagedPart, FileNotFoundError):
            self._parts[path.name] = self._read_keys(path.name, path.stat().st_size)
            self._open.pop(path.name, None)
            self._lookup = None
        return path

    def read(self, samples: Sequence[str], views: Sequence[int]) -> np.ndarray:
        """Gather dense maps into one contiguous array, float16 `[samples, views, L, C]`.

        Samples and views may come in any order and repeat.

        Raises:
            MissingFeatures: some of the pairs are not in the store, or their part is damaged.
        """
        maps = self._gather(samples, _every(views, len(samples)))
        return maps.reshape(len(samples), len(views), self.tokens, self.width)

    def read_pairs(self, samples: Sequence[str], views: Sequence[int]) -> np.ndarray:
        """Gather the dense map of each sample in its own view, float16 `[samples, L, C]`.

        Raises:
            MissingFeatures: some of the pairs are not in the store, or their part is damaged.
        """
        columns = np.fromiter(map(int, views), np.int64, len(samples))[:, None]
        return self._gather(samples, columns).reshape(-1, self.tokens, self.width)

    def _gather(self, samples: Sequence[str], views: np.ndarray) -> np.ndarray:
        """The maps of `views[i, :]` of each sample i, `[samples * columns, L * C]`."""
        places, found = self._rows().locate(samples, views)
        if not found.all():
            absent = np.argwhere(~found)
            row, column = absent[0]
            raise MissingFeatures(
                f"{len(absent)} of {found.size} dense maps are not in {self.folder}; the first is "
                f"view {views[row, column]} of sample {samples[row]}: give the same command again, "
                "which extracts them."
            )
        flat = np.empty((found.size, self.tokens * self.width), np.float16)
        for name, rows, targets in self._rows().by_part(places.reshape(-1)):
            _copy_rows(self._checked_maps(name, rows), rows, flat, targets)
        return flat

    def _rows(self) -> Lookup:
        """The lookup of the parts that are known now; made when it is first needed."""
        if self._lookup is None:
            self._lookup = Lookup(self._parts)
        return self._lookup

    def _read_keys(self, name: str, size: int) -> PartKeys:
        part = open_part(self.folder / name, self.tokens * self.width)
        return PartKeys(size, part.samples, part.views)

    def _checked_maps(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The maps of a part, of which `rows` match their checksums.

        Raises:
            MissingFeatures: the part is gone, or damaged and set aside; its rows are missing now.
        """
        path = self.folder / name
        try:
            part = self._open.pop(name, None)
            if part is None:
                part = open_part(path, self.tokens * self.width)
                self._compare_with_index(name, part)
            part.check(rows)
        except (DamagedPart, FileNotFoundError) as error:
            del self._parts[name]
            self._lookup = None
            what = f"{path} was removed since it was listed"
            if isinstance(error, DamagedPart):
                self.damage.append(set_aside(path, error))
                what = str(self.damage[-1])
            raise MissingFeatures(
                f"{what}: give the same command again, which extracts its maps anew."
            ) from error
        # The parts that were used least recently are closed.
        self._open[name] = part
        while len(self._open) > _MAX_OPEN_PARTS:
            del self._open[next(iter(self._open))]
        return part.maps

    def _compare_with_index(self, name: str, part: Part) -> None:
        """Compare a part's keys with those that it was found by, which the index may have told.

        Raises:
            MissingFeatures: they differ. The index is removed, and the part's own are taken.
        """
        known = self._parts[name]
        if known.samples.equals(part.samples) and np.array_equal(known.views, part.views):
            return
        with contextlib.suppress(OSError):
            (self.folder / INDEX_NAME).unlink()
        self._parts[name] = PartKeys(known.size, part.samples, part.views)
        self._lookup = None
        raise MissingFeatures(
            f"{self.folder / INDEX_NAME} does not say what is in {name}, and was removed: give the "
            "same command again."
        )


def _every(views: Sequence[int], samples: int) -> np.ndarray:
    """The same views for every sample, int64 `[samples, views]`."""
    columns = np.fromiter(map(int, views), np.int64, len(views))
    return np.broadcast_to(columns, (samples, len(columns)))


def _copy_rows(source: np.ndarray, rows: np.ndarray, out: np.ndarray, targets: np.ndarray) -> None:
    """`out[targets] = source[rows]` without the copy in between where rows are neighbours."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(targets) != 1)) + 1
    starts = np.concatenate([[0], breaks]).tolist()
    stops = np.concatenate([breaks, [len(rows)]]).tolist()
    for start, stop in zip(starts, stops, strict=True):
        row, target, length = rows[start], targets[start], stop - start
        out[target : target + length] = source[row : row + length]
