"""The feature store: dense maps on shared storage, content-addressed and memory-mapped.

    <root>/<key digest>/key.json             what made these maps
                        part-<digest>.arrow  rows (sample, view, tokens) of one write, Arrow IPC
                        index.arrow          the key columns of many parts; may be absent
                        *.damaged            parts that could not be read, set aside

A part appears under its name only when it is whole, and its name is derived from the rows in it, so
that any number of processes may write at once, and writing the same rows again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from safe_ray.errors import InputError
from safe_ray.files import digest_json, replacing, sha256_hex, write_atomically

PART_PREFIX = "part-"
PART_SUFFIX = ".arrow"
DAMAGED_SUFFIX = ".damaged"
INDEX_NAME = "index.arrow"
KEY_NAME = "key.json"

# Below this many parts, opening each costs less than a reader notices.
_INDEX_AFTER_PARTS = 64
# A process may hold some 65,000 memory maps in all, and others need them too.
_MAX_OPEN_PARTS = 4096
_LEFTOVER_AGE_S = 24 * 3600.0
# Views fit 16 bits, so a pair packs into one sortable integer.
_VIEW_BITS = 16
_MAX_VIEW = 2 ** (_VIEW_BITS - 1) - 1


class MissingFeatures(KeyError):
    """Dense maps that were asked for are not in the store."""

    def __str__(self) -> str:
        return str(self.args[0])


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


@dataclass(frozen=True)
class _Part:
    size: int
    samples: pa.Array
    views: np.ndarray


class _Damaged(Exception):
    """A part that cannot be trusted."""


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
    """

    def __init__(self, root: Path, key: StoreKey, tokens: int, width: int) -> None:
        self.key = key
        self.tokens = tokens
        self.width = width
        self.folder = Path(root) / key.digest
        self._parts: dict[str, _Part] = {}
        self._open: dict[str, np.ndarray] = {}
        self._forget_index()
        self.refresh()

    def __len__(self) -> int:
        """The number of distinct (sample, view) pairs in the store."""
        self._build_index()
        return int(np.unique(self._keys).size)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one dense map."""
        return self.tokens * self.width * 2

    def refresh(self) -> None:
        """Pick up the parts that others wrote, and drop those that are gone.

        A part that is truncated or is not what it should be is renamed to `*.damaged`, and its rows
        count as missing.
        """
        listed = _list_parts(self.folder)
        unknown = [
            name
            for name, size in listed.items()
            if name not in self._parts or self._parts[name].size != size
        ]
        kept = {name: part for name, part in self._parts.items() if name in listed}
        if not unknown and len(kept) == len(self._parts):
            return
        remembered = _read_index(self.folder) if len(unknown) >= _INDEX_AFTER_PARTS else {}
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
            except _Damaged:
                _set_aside(self.folder / name)
            except FileNotFoundError:
                continue
        self._parts = kept
        self._open = {name: maps for name, maps in self._open.items() if name in kept}
        self._forget_index()
        if opened >= _INDEX_AFTER_PARTS:
            _write_index(self.folder, kept)

    def missing(self, samples: Sequence[str], views: Sequence[int]) -> list[tuple[str, int]]:
        """Return the (sample, view) pairs that are not in the store.

        Every sample is paired with every view, samples first; the order is kept and a pair is
        named once.
        """
        samples = list(dict.fromkeys(samples))
        views = list(dict.fromkeys(int(view) for view in views))
        _, found = self._locate(samples, _every(views, len(samples)))
        return [(samples[row], views[column]) for row, column in np.argwhere(~found)]

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
        with contextlib.suppress(_Damaged, FileNotFoundError):
            self._parts[path.name] = self._read_keys(path.name, path.stat().st_size)
            self._open.pop(path.name, None)
            self._forget_index()
        return path

    def read(self, samples: Sequence[str], views: Sequence[int]) -> np.ndarray:
        """Gather dense maps into one contiguous array, float16 `[samples, views, L, C]`.

        Samples and views may come in any order and repeat.

        Raises:
            MissingFeatures: some of the pairs are not in the store.
        """
        maps = self._gather(samples, _every(views, len(samples)))
        return maps.reshape(len(samples), len(views), self.tokens, self.width)

    def read_pairs(self, samples: Sequence[str], views: Sequence[int]) -> np.ndarray:
        """Gather the dense map of each sample in its own view, float16 `[samples, L, C]`.

        Raises:
            MissingFeatures: some of the pairs are not in the store.
        """
        columns = np.fromiter(map(int, views), np.int64, len(samples))[:, None]
        return self._gather(samples, columns).reshape(-1, self.tokens, self.width)

    def _gather(self, samples: Sequence[str], views: np.ndarray) -> np.ndarray:
        """The maps of `views[i, :]` of each sample i, `[samples * columns, L * C]`."""
        places, found = self._locate(samples, views)
        if not found.all():
            absent = np.argwhere(~found)
            row, column = absent[0]
            raise MissingFeatures(
                f"{len(absent)} of {found.size} dense maps are not in {self.folder}; the first is "
                f"view {views[row, column]} of sample {samples[row]}. Extract them first."
            )
        flat = np.empty((found.size, self.tokens * self.width), np.float16)
        places = places.reshape(-1)
        part_of = self._part_of[places]
        order = np.argsort(part_of, kind="stable")
        bounds = np.flatnonzero(np.diff(part_of[order])) + 1
        for target in np.split(order, bounds) if order.size else []:
            name = self._names[part_of[target[0]]]
            _copy_rows(self._tokens_of(name), self._row_of[places[target]], flat, target)
        return flat

    def _locate(self, samples: Sequence[str], views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the index of `views[i, :]` of sample i, and whether each was found."""
        self._build_index()
        get = self._ids.get
        ids = np.fromiter((get(sample, -1) for sample in samples), np.int64, len(samples))
        wanted = (ids[:, None] << _VIEW_BITS) + views
        if not self._keys.size:
            return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
        places = np.searchsorted(self._keys, wanted)
        places = np.minimum(places, self._keys.size - 1)
        known = (ids[:, None] >= 0) & (views >= 0) & (views <= _MAX_VIEW)
        return places, known & (self._keys[places] == wanted)

    def _forget_index(self) -> None:
        self._names: list[str] = []
        self._indexed = False
        self._ids: dict[str, int] = {}
        self._keys = np.empty(0, np.int64)
        self._part_of = np.empty(0, np.int32)
        self._row_of = np.empty(0, np.int32)

    def _build_index(self) -> None:
        if self._indexed:
            return
        self._indexed = True
        self._names = sorted(self._parts)
        if not self._names:
            return
        parts = [self._parts[name] for name in self._names]
        samples = pa.chunked_array([part.samples for part in parts], pa.string())
        encoded = samples.combine_chunks().dictionary_encode()
        self._ids = {sample: i for i, sample in enumerate(encoded.dictionary.to_pylist())}
        ids = encoded.indices.to_numpy().astype(np.int64)
        keys = (ids << _VIEW_BITS) + np.concatenate([part.views for part in parts])
        lengths = np.array([len(part.views) for part in parts])
        # Stable, so that of a pair in two parts the first is found.
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._part_of = np.repeat(np.arange(len(parts), dtype=np.int32), lengths)[order]
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        self._row_of = (np.arange(len(keys)) - starts)[order].astype(np.int32)

    def _read_keys(self, name: str, size: int) -> _Part:
        batch = _open_part(self.folder / name, self.tokens * self.width)
        # Copies, so that no map stays open for the two small columns.
        samples = pa.array(batch.column("sample").to_pylist(), pa.string())
        return _Part(size, samples, batch.column("view").to_numpy().astype(np.int64))

    def _tokens_of(self, name: str) -> np.ndarray:
        maps = self._open.pop(name, None)
        if maps is None:
            try:
                batch = _open_part(self.folder / name, self.tokens * self.width)
            except (_Damaged, FileNotFoundError) as error:
                raise MissingFeatures(
                    f"{self.folder / name} was removed or damaged since it was listed; run the "
                    "same command again to extract its rows."
                ) from error
            column = batch.column("tokens")
            maps = column.values.to_numpy().reshape(len(column), self.tokens * self.width)
        self._open[name] = maps
        while len(self._open) > _MAX_OPEN_PARTS:
            del self._open[next(iter(self._open))]
        return maps


def write_part(
    folder: Path, samples: Sequence[str], views: Sequence[int], maps: np.ndarray
) -> Path:
    """Write one part of a store into `folder`, atomically; see `FeatureStore.write_part`."""
    if any(not 0 <= view <= _MAX_VIEW for view in views):
        raise ValueError(f"A view must be between 0 and {_MAX_VIEW}, got {sorted(set(views))}.")
    flat = np.ascontiguousarray(maps, np.float16).reshape(len(samples), -1)
    row = _first_row_not_finite(flat)
    if row is not None:
        raise InputError(
            f"The dense map of view {views[row]} of sample {samples[row]} holds a value that is "
            "not a finite float16, so it cannot be kept in the feature store: check the "
            "backbone's weights, or give features.precision=fp32."
        )
    pairs = "\n".join(f"{sample}/{view}" for sample, view in zip(samples, views, strict=True))
    path = folder / f"{PART_PREFIX}{sha256_hex(pairs.encode(), length=32)}{PART_SUFFIX}"
    batch = pa.record_batch(
        {
            "sample": pa.array(list(samples), pa.string()),
            "view": pa.array(np.asarray(views, np.int16)),
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        }
    )
    _write_batch(path, batch)
    return path


def prepare_folder(root: Path, needed_bytes: int) -> None:
    """Make sure that `root` can be written to and has room for `needed_bytes`.

    Raises:
        InputError: it cannot be made, is read-only, or has too little free space.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise InputError(
            f"The feature store {root} cannot be written to ({error.strerror}): name another "
            "folder with storage=<folder>."
        ) from error
    if needed_bytes > free:
        raise InputError(
            f"The feature store {root} needs {_gigabytes(needed_bytes)} more for this run, and "
            f"its disk has {_gigabytes(free)} free: free some space, or name another folder with "
            "storage=<folder>."
        )


def remove_leftovers(folder: Path, older_than_s: float = _LEFTOVER_AGE_S) -> int:
    """Delete the temporary files of writers that were killed; return how many there were."""
    removed = 0
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(f".{PART_PREFIX}") and (
                time.time() - entry.stat().st_mtime > older_than_s
            ):
                Path(entry.path).unlink()
                removed += 1
    return removed


def _list_parts(folder: Path) -> dict[str, int]:
    try:
        with os.scandir(folder) as entries:
            found = {
                entry.name: entry.stat().st_size
                for entry in entries
                if entry.name.startswith(PART_PREFIX) and entry.name.endswith(PART_SUFFIX)
            }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(
            f"The feature store {folder} cannot be read ({error.strerror}): name another folder "
            "with storage=<folder>."
        ) from error
    return found


def _open_part(path: Path, row_length: int) -> pa.RecordBatch:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            if reader.num_record_batches != 1:
                raise _Damaged(path)
            batch = reader.get_batch(0)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _Damaged(path) from error
    expected = pa.list_(pa.float16(), row_length)
    schema = batch.schema
    if schema.names != ["sample", "view", "tokens"] or schema.field("tokens").type != expected:
        raise _Damaged(path)
    return batch


def _set_aside(path: Path) -> None:
    # Another process may have done so already, or the store may be read-only: the rows count as
    # missing here in any case.
    with contextlib.suppress(OSError):
        path.replace(path.with_name(path.name + DAMAGED_SUFFIX))


def _write_batch(path: Path, batch: pa.RecordBatch) -> None:
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def _read_index(folder: Path) -> dict[str, _Part]:
    """The key columns of the parts that some process opened before; empty if there is none."""
    path = folder / INDEX_NAME
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            table = reader.read_all()
            listed = json.loads(table.schema.metadata[b"parts"])
        samples, views = table.column("sample"), table.column("view").to_numpy().astype(np.int64)
        return dict(_slices(listed, samples.combine_chunks(), views))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return {}


def _slices(
    listed: Sequence[tuple[str, int, int]], samples: pa.Array, views: np.ndarray
) -> Iterator[tuple[str, _Part]]:
    start = 0
    for name, size, rows in listed:
        yield name, _Part(size, samples.slice(start, rows), views[start : start + rows])
        start += rows
    if start != len(views):
        raise ValueError("The index does not add up.")


def _write_index(folder: Path, parts: Mapping[str, _Part]) -> None:
    listed = [(name, part.size, len(part.views)) for name, part in parts.items()]
    samples = pa.chunked_array([part.samples for part in parts.values()], pa.string())
    batch = pa.record_batch(
        {
            "sample": samples.combine_chunks(),
            "view": pa.array(
                np.concatenate([part.views for part in parts.values()]).astype(np.int16)
            ),
        }
    ).replace_schema_metadata({"parts": json.dumps(listed)})
    # Only a cache: on read-only or full storage the next reader opens the parts again.
    with contextlib.suppress(InputError):
        _write_batch(folder / INDEX_NAME, batch)


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


def _first_row_not_finite(flat: np.ndarray) -> int | None:
    # An exponent of all ones is an infinity or a NaN. numpy's own test converts every half first.
    broken = (flat.view(np.uint16) & 0x7C00) == 0x7C00
    return int(np.argmax(broken.any(axis=1))) if broken.any() else None


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
