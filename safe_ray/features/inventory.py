"""The inventory of a table of images: each one's digest, and which cannot be decoded.

Every image is read and decoded once, before anything expensive starts. What was found sound is
remembered by (file, size, modification time), or by digest for images inside a table, so that a
second run reads no file again. A part of a file, such as an image in a tar, is known by its place
in it and the size and time of the whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from safe_ray.data.images import BadImageError, decode_image
from safe_ray.data.locations import first_line, is_uri, stamp
from safe_ray.data.sources import ImageSource, image_sources
from safe_ray.errors import InputError
from safe_ray.files import replacing, sha256_hex
from safe_ray.progress import Progress

SAMPLE_DIGITS = 32

_SHOWN_BAD = 10
_PROGRESS_INTERVAL_S = 0.2
_REMOTE_WORKERS = 16
_Stamp = tuple[str, int, int]


def no_progress(done: int, total: int, seconds_left: float | None) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Inventory:
    """What a table holds.

    Attributes:
        table: the rows whose image is sound, with a column `sample`: the first 32 hexadecimal
            digits of the SHA-256 of the encoded image.
        bad: (path, reason) of the rows that were left out.
        checked: how many images were not known from before.
    """

    table: pa.Table
    bad: tuple[tuple[str, str], ...]
    checked: int

    @property
    def samples(self) -> list[str]:
        """The sample digest of every row of `table`."""
        return self.table.column("sample").to_pylist()


@dataclass(frozen=True)
class _Finding:
    sample: str = ""
    stamp: _Stamp | None = None
    reason: str = ""
    checked: bool = False


def sample_digest(encoded: bytes) -> str:
    """Return what names an image in the feature store, from its encoded bytes."""
    return sha256_hex(encoded, length=SAMPLE_DIGITS)


def take_inventory(
    table: pa.Table, cache: Path, skip_bad: bool = False, progress: Progress = no_progress
) -> Inventory:
    """Digest and check every image of `table`.

    Args:
        table: rows with `path`, and `image` (encoded bytes) or `file` (absolute path or URI; with
            `offset` and `length`, a part of it).
        cache: the file that remembers sound images; any number of tables may share it. If it
            cannot be written, the next run checks everything again.
        skip_bad: leave bad images out instead of stopping.
        progress: called now and then, with rows.

    Raises:
        InputError: some image is missing, unreadable or not an image (the first ten are named),
            and `skip_bad` is off; or none is sound.
    """
    known_files, known_samples = _read_cache(cache)
    findings = list(_examine(table, known_files, known_samples, progress))
    paths = table.column("path").to_pylist()
    bad = tuple(
        (path, finding.reason)
        for path, finding in zip(paths, findings, strict=True)
        if finding.reason
    )
    if any(finding.checked and not finding.reason for finding in findings):
        _remember(cache, findings)
    if bad and not skip_bad:
        raise InputError(describe_bad(bad, len(paths)))
    sound = [row for row, finding in enumerate(findings) if not finding.reason]
    if bad and not sound:
        raise InputError(
            f"None of the {len(bad)} images can be read; the first is {bad[0][0]} ({bad[0][1]}): "
            "check the data set's path."
        )
    samples = pa.array([findings[row].sample for row in sound], pa.string())
    kept = table if len(sound) == len(findings) else table.take(pa.array(sound, pa.int64()))
    if "sample" in kept.column_names:
        kept = kept.drop_columns(["sample"])
    checked = sum(finding.checked for finding in findings)
    return Inventory(kept.append_column("sample", samples), bad, checked)


def _examine(
    table: pa.Table,
    known_files: Mapping[_Stamp, str],
    known_samples: frozenset[str],
    progress: Progress,
) -> Iterator[_Finding]:
    total = table.num_rows
    # Thousands of images share one tar, whose stamp a remote file system is asked for once.
    shared_stamp = functools.cache(stamp)

    def examine(source: ImageSource) -> _Finding:
        if source.file is None:
            return _examine_bytes(source.read(), known_samples)
        get_stamp = stamp if source.length is None else shared_stamp
        return _examine_file(source, get_stamp, known_files, known_samples)

    start = shown = time.monotonic()
    with ThreadPoolExecutor(_workers(table), "inventory") as pool:
        # A window at a time: submitting all would hold every image of the table in memory.
        for done, finding in enumerate(_windowed(pool, examine, image_sources(table)), 1):
            yield finding
            now = time.monotonic()
            if now - shown >= _PROGRESS_INTERVAL_S or done == total:
                shown = now
                progress(done, total, (now - start) / done * (total - done))


def _windowed(
    pool: ThreadPoolExecutor,
    examine: Callable[[ImageSource], _Finding],
    work: Iterable[ImageSource],
    size: int = 256,
) -> Iterator[_Finding]:
    window: list[ImageSource] = []
    for item in work:
        window.append(item)
        if len(window) == size:
            yield from pool.map(examine, window)
            window.clear()
    yield from pool.map(examine, window)


def _workers(table: pa.Table) -> int:
    if "file" in table.column_names and any(is_uri(file.as_py()) for file in table["file"][:1]):
        # They wait for the network, not for a core.
        return _REMOTE_WORKERS
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _examine_file(
    source: ImageSource,
    get_stamp: Callable[[str], tuple[int, int]],
    known_files: Mapping[_Stamp, str],
    known_samples: frozenset[str],
) -> _Finding:
    assert source.file is not None
    assert source.name is not None
    try:
        size, changed = get_stamp(source.file)
        key = (source.name, size, changed)
        # Where nothing tells when a file was changed, it is read each time.
        if changed and key in known_files:
            return _Finding(known_files[key], key)
        encoded = source.read()
    except OSError as error:
        return _Finding(reason=first_line(error))
    finding = _examine_bytes(encoded, known_samples)
    # A file known by its bytes under another name is new to the cache under this one.
    return _Finding(finding.sample, key, finding.reason, checked=True)


def _examine_bytes(encoded: bytes, known_samples: frozenset[str]) -> _Finding:
    sample = sample_digest(encoded)
    if sample in known_samples:
        return _Finding(sample)
    try:
        decode_image(encoded)
    except BadImageError as error:
        return _Finding(sample, reason=str(error), checked=True)
    return _Finding(sample, checked=True)


def describe_bad(bad: Sequence[tuple[str, str]], total: int) -> str:
    """Return one sentence that names the first ten bad images of `total`, and the remedy."""
    shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:_SHOWN_BAD])
    more = f"; and {len(bad) - _SHOWN_BAD} more" if len(bad) > _SHOWN_BAD else ""
    return (
        f"{len(bad)} of {total} images cannot be used: {shown}{more}. Repair or remove them, or "
        "leave them out with data.skip_bad=true."
    )


def _read_cache(cache: Path) -> tuple[Mapping[_Stamp, str], frozenset[str]]:
    try:
        status = cache.stat()
    except OSError:
        return {}, frozenset()
    return _parse_cache(cache, status.st_size, status.st_mtime_ns)


# A sweep takes the inventory of many small tables against one cache.
@functools.lru_cache(maxsize=1)
def _parse_cache(
    cache: Path, size: int, mtime_ns: int
) -> tuple[Mapping[_Stamp, str], frozenset[str]]:
    try:
        with pa.memory_map(str(cache)) as source, pa.ipc.open_file(source) as reader:
            columns = reader.read_all().to_pydict()
        rows = zip(
            columns["file"], columns["size"], columns["mtime_ns"], columns["sample"], strict=True
        )
        files = {(file, size, mtime): sample for file, size, mtime, sample in rows if file}
        return files, frozenset(columns["sample"])
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return {}, frozenset()


def _remember(cache: Path, findings: Iterable[_Finding]) -> None:
    # Read again, because others may have written meanwhile. If two write at the same moment, the
    # rows of one are lost, and are checked again in its next run.
    files, samples = _read_cache(cache)
    latest = {stamp[0]: (*stamp, sample) for stamp, sample in files.items()}
    inline = dict.fromkeys(samples - set(files.values()))
    for finding in findings:
        if finding.reason:
            continue
        if finding.stamp is None:
            inline[finding.sample] = None
        else:
            latest[finding.stamp[0]] = (*finding.stamp, finding.sample)
    rows = [*latest.values(), *(("", 0, 0, sample) for sample in inline)]
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("sample", pa.string()),
        ]
    )
    columns = [list(column) for column in zip(*rows, strict=True)]
    with (
        contextlib.suppress(InputError),
        replacing(cache) as temporary,
        pa.ipc.new_file(str(temporary), schema) as writer,
    ):
        writer.write_table(pa.table(columns, schema=schema))
