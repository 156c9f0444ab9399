"""A part: the dense maps of one write in one Arrow IPC file, with what shows any damage to it.

    column    type              one row a dense map
    sample    string            the image's digest
    view      int16
    tokens    float16[L * C]
    checksum  uint64            XXH3 of the row's tokens, 64 bits; older parts have no such column

The file's name is a digest of its (sample, view) pairs in their order. So the key columns are
checked against the name whenever a part is opened, and each map against its checksum before it is
first given out. What Arrow, the columns, the name or a checksum refuses is damage; what the
operating system refuses is not, and leaves the file as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from safe_ray.arrow_files import mapped_batches
from safe_ray.errors import InputError
from safe_ray.files import replacing, sha256_hex

PART_PREFIX = "part-"
PART_SUFFIX = ".arrow"
DAMAGED_SUFFIX = ".damaged"
# Views fit 16 bits, so that a store can pack a pair into one sortable integer.
VIEW_BITS = 16
MAX_VIEW = 2 ** (VIEW_BITS - 1) - 1

_KEYED_MAPS = ["sample", "view", "tokens"]
_COLUMNS = [*_KEYED_MAPS, "checksum"]
# Long enough for a file server to come back from a hiccup, short enough for a person who waits.
_WAITS_S = (0.05, 0.25, 1.0)
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files (fs.file-max)",
    errno.ENOMEM: "free some memory, or allow more memory maps (vm.max_map_count)",
    errno.EACCES: "give this user the right to read it",
    errno.EPERM: "give this user the right to read it",
}

_NOT_ARROW = "it is cut off or not an Arrow file"
# What `safe_ray.outside` says of pipes, folders and links.
_NO_PART = (errno.EINVAL, errno.ELOOP, errno.EISDIR)

_T = TypeVar("_T")


class DamagedPart(Exception):
    """A part that cannot be trusted; the message says why, about "it".

    Attributes:
        maps: how many dense maps it holds, None where that cannot be told.
    """

    def __init__(self, reason: str, maps: int | None = None) -> None:
        super().__init__(reason)
        self.maps = maps


@dataclass(frozen=True)
class Damage:
    """A part that was damaged, and what became of it.

    Attributes:
        path: where it was.
        reason: what is wrong, about "it".
        maps: how many dense maps it held, None where that cannot be told.
        aside: whether it was renamed; storage may be read-only.
    """

    path: Path
    reason: str
    maps: int | None
    aside: bool

    def __str__(self) -> str:
        name = self.path.name
        held = "" if self.maps is None else f" with {counted(self.maps, 'dense map')}"
        where = f"set aside as {name}{DAMAGED_SUFFIX}" if self.aside else "left out"
        return f"{self.path}{held} is damaged ({self.reason}) and is {where}"


class Part:
    """An open part: its keys in memory, its maps memory-mapped.

    Attributes:
        samples: the sample of each row, strings.
        views: the view of each row, int64.
        maps: float16 `[rows, L * C]`.
        checksums: uint64 `[rows]`, or None in a part of an older version.
    """

    def __init__(
        self, samples: pa.Array, views: np.ndarray, maps: np.ndarray, checksums: np.ndarray | None
    ) -> None:
        self.samples = samples
        self.views = views
        self.maps = maps
        self.checksums = checksums
        self._sound = np.full(len(maps), checksums is None)

    def check(self, rows: np.ndarray) -> None:
        """Compare the maps of `rows` with their checksums; each is read once in this part's life.

        Raises:
            DamagedPart: some of them differ.
        """
        if self.checksums is None or self._sound[rows].all():
            return
        unchecked = np.unique(rows[~self._sound[rows]])
        same = _checksums(self.maps[row] for row in unchecked) == self.checksums[unchecked]
        self._sound[unchecked[same]] = True
        if not same.all():
            raise DamagedPart(
                f"{np.count_nonzero(~same)} of the {len(same)} maps looked at do not match their "
                "checksums",
                len(self.maps),
            )


def write_part(
    folder: Path, samples: Sequence[str], views: Sequence[int], maps: np.ndarray
) -> Path:
    """Write `maps` (float16 `[n, L, C]`) into `folder`, atomically, and return the part's path.

    Raises:
        InputError: the folder cannot be written to, the disk is full, or a map holds a value that
            is not finite.
    """
    if any(not 0 <= view <= MAX_VIEW for view in views):
        raise ValueError(f"A view must be between 0 and {MAX_VIEW}, got {sorted(set(views))}.")
    flat = np.ascontiguousarray(maps, np.float16).reshape(len(samples), -1)
    row = _first_row_not_finite(flat)
    if row is not None:
        raise InputError(
            f"The dense map of view {views[row]} of sample {samples[row]} holds a value that is "
            "not a finite float16, so it cannot be kept in the feature store: check the "
            "backbone's weights, or give features.precision=fp32."
        )
    columns = [
        pa.array(list(samples), pa.string()),
        pa.array(np.asarray(views, np.int16)),
        pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1]),
        pa.array(_checksums(flat)),
    ]
    path = folder / _name_of(samples, views)
    write_batch(path, pa.record_batch(columns, names=_COLUMNS))
    return path


def open_part(path: Path, row_length: int | None = None) -> Part:
    """Map a part into memory and check all of it but its maps.

    Args:
        path: of the part.
        row_length: L * C of the store; None takes any.

    Raises:
        DamagedPart: it is not what was written under its name.
        FileNotFoundError: it is gone.
        InputError: the operating system refuses to open it, also after some waiting.
    """
    try:
        batch = patiently(path, lambda: _read_batch(path))
        schema = batch.schema
        if schema.names not in (_COLUMNS, _KEYED_MAPS) or not _holds_maps(schema):
            raise DamagedPart("its columns are not those of a part")
        length = schema.field("tokens").type.list_size
        if row_length not in (None, length):
            raise DamagedPart("its maps have another shape than the store's", batch.num_rows)
        names = batch.column("sample").to_pylist()
        views = batch.column("view").to_numpy().astype(np.int64)
        if path.name != _name_of(names, views.tolist()):
            raise DamagedPart("its samples and views do not match its name", batch.num_rows)
        column = batch.column("tokens")
        maps = column.values.to_numpy().reshape(len(column), length)
        # Copies of the small columns, so that a caller may drop the map and keep them.
        checksums = (
            batch.column("checksum").to_numpy().copy() if "checksum" in schema.names else None
        )
        return Part(pa.array(names, pa.string()), views, maps, checksums)
    except (pa.ArrowException, ValueError, TypeError, LookupError) as error:
        raise DamagedPart(_NOT_ARROW) from error
    except OSError as error:
        if error.errno in _NO_PART:
            raise DamagedPart(str(error.strerror)) from error
        # Arrow has no errno for a file that it does not understand.
        if error.errno is not None:
            raise
        raise DamagedPart(_NOT_ARROW) from error


def set_aside(path: Path, damaged: DamagedPart) -> Damage:
    """Rename a damaged part, so that nobody trusts it and its rows count as missing."""
    try:
        path.replace(path.with_name(path.name + DAMAGED_SUFFIX))
        aside = True
    except FileNotFoundError:
        # Another process was faster.
        aside = True
    except OSError:
        aside = False
    return Damage(path, str(damaged), damaged.maps, aside)


def list_parts(folder: Path) -> dict[str, int]:
    """Return the names of a folder's parts and their bytes; empty if there is no folder.

    Raises:
        InputError: the operating system refuses to list it, also after some waiting.
    """
    try:
        return patiently(folder, lambda: _scan(folder))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """Write one batch as an uncompressed Arrow IPC file, atomically."""
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), batch.schema) as writer:
        writer.write_batch(batch)


def patiently(path: Path, read: Callable[[], _T]) -> _T:
    """Return `read()`, tried again for a moment while the operating system refuses it.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        OSError: one without an errno, which is not the operating system's; or what lies there is no
            regular file.
        InputError: it still refuses; the sentence names `path`, the reason and a remedy.
    """
    for wait in (*_WAITS_S, None):
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno in (None, *_NO_PART):
                raise
            if wait is None:
                remedy = _REMEDIES.get(error.errno, "see to the storage that it lies on")
                raise InputError(
                    f"The feature store's {path} cannot be read ({os.strerror(error.errno)}): "
                    f"{remedy}, and give the same command again."
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def counted(count: int, noun: str) -> str:
    """Return `1 part`, `2 parts`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _read_batch(path: Path) -> pa.RecordBatch:
    first = batch = None
    for batch in mapped_batches(path):
        if first is not None:
            break
        first = batch
    if first is None or first is not batch:
        raise DamagedPart("it does not hold one batch of rows")
    return first


def _holds_maps(schema: pa.Schema) -> bool:
    tokens = schema.field("tokens").type
    return pa.types.is_fixed_size_list(tokens) and tokens.value_type == pa.float16()


def _scan(folder: Path) -> dict[str, int]:
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PART_PREFIX) and entry.name.endswith(PART_SUFFIX):
                # Another process may have set it aside since.
                with contextlib.suppress(FileNotFoundError):
                    # Whoever opens a link refuses it.
                    found[entry.name] = entry.stat(follow_symlinks=False).st_size
    return found


def _name_of(samples: Sequence[str], views: Sequence[int]) -> str:
    pairs = "\n".join(f"{sample}/{view}" for sample, view in zip(samples, views, strict=True))
    return f"{PART_PREFIX}{sha256_hex(pairs.encode(), length=32)}{PART_SUFFIX}"


def _checksums(rows: Iterable[np.ndarray]) -> np.ndarray:
    return np.fromiter((xxhash.xxh3_64_intdigest(row.data) for row in rows), np.uint64)


def _first_row_not_finite(flat: np.ndarray) -> int | None:
    # An exponent of all ones is an infinity or a NaN. numpy's own test converts every half first.
    broken = (flat.view(np.uint16) & 0x7C00) == 0x7C00
    return int(np.argmax(broken.any(axis=1))) if broken.any() else None
