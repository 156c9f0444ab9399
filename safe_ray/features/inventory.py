"""The inventory of a table of images: each one's digest, and which cannot be decoded.

Every image is read and decoded once, before anything expensive starts. What was found sound, what
the decoder warned of, and what the image looks like is remembered by (file, size, modification
time), or by digest for images inside a table, so that a second run reads no file again. A part of a
file, such as an image in a tar, is known by its place in it and the size and time of the whole.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from safe_ray.arrow_files import mapped_batches
from safe_ray.data.duplicates import THUMBNAIL_BYTES, thumbnail_of
from safe_ray.data.images import BadImageError, decode_image, decoder_warning
from safe_ray.data.locations import first_line, is_uri, stamp
from safe_ray.data.sources import ImageSource, image_sources
from safe_ray.errors import InputError
from safe_ray.files import replacing, sha256_hex
from safe_ray.progress import Progress

SAMPLE_DIGITS = 32

_SHOWN_BAD = 10
_SHOWN_WARNED = 3
_PROGRESS_INTERVAL_S = 0.2
_REMOTE_WORKERS = 16
_IMAGES_AT_ONCE = 64
_ROWS_AT_ONCE = 4096

Spread = Callable[
    [Callable[[Sequence[ImageSource]], "list[_Finding]"], Iterable[Sequence[ImageSource]]],
    Iterator["list[_Finding]"],
]
"""Calls a function with each of many items, elsewhere, and returns the answers in order."""

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
        warned: (path, warning) of the rows in `table` that the decoder takes, but warns of.
        checked: how many images were not known from before.
        looks: of each row of `table` the bytes of a `safe_ray.data.duplicates.thumbnail_of`.
    """

    table: pa.Table
    bad: tuple[tuple[str, str], ...]
    checked: int
    warned: tuple[tuple[str, str], ...] = ()
    looks: tuple[bytes, ...] = ()

    @property
    def samples(self) -> list[str]:
        """The sample digest of every row of `table`."""
        return self.table.column("sample").to_pylist()


@dataclass(frozen=True)
class _Known:
    """What earlier runs found: each file's sample, and each sample's warning and looks."""

    files: Mapping[_Stamp, str]
    samples: Mapping[str, tuple[str, bytes]]


@dataclass(frozen=True)
class _Finding:
    sample: str = ""
    stamp: _Stamp | None = None
    reason: str = ""
    warning: str = ""
    checked: bool = False
    look: bytes = b""


@dataclass(frozen=True)
class _Lookup:
    """An image, its file's stamp, and what is known of it."""

    source: ImageSource
    stamp: _Stamp | None = None
    finding: _Finding | None = None


def sample_digest(encoded: bytes) -> str:
    """Return what names an image in the feature store, from its encoded bytes."""
    return sha256_hex(encoded, length=SAMPLE_DIGITS)


def take_inventory(
    table: pa.Table,
    cache: Path,
    skip_bad: bool = False,
    progress: Progress = no_progress,
    spread: Spread | None = None,
) -> Inventory:
    """Digest and check every image of `table`.

    Args:
        table: rows with `path`, and `image` (encoded bytes) or `file` (absolute path or URI; with
            `offset` and `length`, a part of it).
        cache: the file that remembers sound images; any number of tables may share it. If it
            cannot be written, the next run checks everything again.
        skip_bad: leave bad images out instead of stopping.
        progress: called now and then, with rows.
        spread: gives images that are not known to others to decode; None decodes them here.

    Raises:
        InputError: some image is missing, unreadable or not an image (the first ten are named),
            and `skip_bad` is off; or none is sound; or one can be read here, and not where it is
            decoded.
    """
    findings = list(_examine(table, _read_cache(cache), progress, spread))
    paths = table.column("path").to_pylist()
    bad = tuple(
        (path, finding.reason)
        for path, finding in zip(paths, findings, strict=True)
        if finding.reason
    )
    warned = tuple(
        (path, finding.warning)
        for path, finding in zip(paths, findings, strict=True)
        if finding.warning and not finding.reason
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
    looks = tuple(findings[row].look for row in sound)
    return Inventory(kept.append_column("sample", samples), bad, checked, warned, looks)


def _examine(
    table: pa.Table,
    known: _Known,
    progress: Progress,
    spread: Spread | None,
) -> Iterator[_Finding]:
    total = table.num_rows
    # Thousands of images share one tar, whose stamp a remote file system is asked for once.
    shared_stamp = functools.cache(stamp)

    def examine(source: ImageSource) -> _Finding:
        if source.file is None:
            return _examine_bytes(source.read(), known)
        get_stamp = stamp if source.length is None else shared_stamp
        return _examine_file(source, get_stamp, known)

    start = shown = time.monotonic()
    with ThreadPoolExecutor(_workers(table), "inventory") as pool:
        if spread is not None:
            findings = _examine_elsewhere(image_sources(table), known, shared_stamp, spread)
        else:
            # A window at a time: submitting all would hold every image of the table in memory.
            findings = _windowed(pool, examine, image_sources(table))
        for done, finding in enumerate(findings, 1):
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


def _examine_elsewhere(
    sources: Iterable[ImageSource],
    known: _Known,
    get_stamp: Callable[[str], tuple[int, int]],
    spread: Spread,
) -> Iterator[_Finding]:
    """Look up here what is known, and let others read and decode the rest, some images at once."""
    waiting: deque[list[_Lookup]] = deque()
    last: list[_Lookup] = []

    def work() -> Iterator[list[ImageSource]]:
        nonlocal last
        for source in sources:
            last.append(_look_up(source, get_stamp, known))
            unknown = [row.source for row in last if row.finding is None]
            if len(unknown) == _IMAGES_AT_ONCE or len(last) == _ROWS_AT_ONCE:
                waiting.append(last)
                last = []
                if unknown:
                    yield unknown
        if any(row.finding is None for row in last):
            waiting.append(last)
            unknown, last = [row.source for row in last if row.finding is None], []
            yield unknown

    def settled() -> Iterator[_Finding]:
        while waiting and all(row.finding is not None for row in waiting[0]):
            yield from (row.finding for row in waiting.popleft() if row.finding is not None)

    for answers in spread(examine_images, work()):
        yield from settled()
        found = iter(answers)
        for row in waiting.popleft():
            yield row.finding or _completed(row, next(found))
    yield from settled()
    yield from (row.finding for row in last if row.finding is not None)


def _look_up(
    source: ImageSource, get_stamp: Callable[[str], tuple[int, int]], known: _Known
) -> _Lookup:
    if source.file is None:
        sample = sample_digest(source.read())
        if sample not in known.samples:
            return _Lookup(source)
        return _Lookup(source, None, _of_known(sample, known))
    assert source.name is not None
    try:
        size, changed = get_stamp(source.file)
    except OSError as error:
        return _Lookup(source, None, _Finding(reason=first_line(error)))
    key = (source.name, size, changed)
    if not changed or key not in known.files:
        return _Lookup(source, key)
    sample = known.files[key]
    return _Lookup(source, key, _of_known(sample, known, key))


def _of_known(sample: str, known: _Known, key: _Stamp | None = None) -> _Finding:
    warning, look = known.samples[sample]
    return _Finding(sample, key, warning=warning, look=look)


def _completed(row: _Lookup, finding: _Finding) -> _Finding:
    """Return what was found elsewhere, which must not differ from what is seen here."""
    if finding.reason and not finding.sample:
        with contextlib.suppress(OSError):
            row.source.read()
            raise InputError(
                f"{row.source.name} can be read here, and not on the node that checks it "
                f"({finding.reason}): keep images where every node sees them."
            )
    return replace(finding, stamp=row.stamp)


def examine_images(sources: Sequence[ImageSource]) -> list[_Finding]:
    """Read and decode images of which nothing is known, in this process."""
    findings = []
    for source in sources:
        try:
            findings.append(replace(_examine_bytes(source.read(), _Known({}, {})), checked=True))
        except OSError as error:
            findings.append(_Finding(reason=first_line(error)))
    return findings


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
    known: _Known,
) -> _Finding:
    assert source.file is not None
    assert source.name is not None
    try:
        size, changed = get_stamp(source.file)
        key = (source.name, size, changed)
        # Where nothing tells when a file was changed, it is read each time.
        if changed and key in known.files:
            sample = known.files[key]
            return _of_known(sample, known, key)
        encoded = source.read()
    except OSError as error:
        return _Finding(reason=first_line(error))
    finding = _examine_bytes(encoded, known)
    # A file known by its bytes under another name is new to the cache under this one.
    return replace(finding, stamp=key, checked=True)


def _examine_bytes(encoded: bytes, known: _Known) -> _Finding:
    sample = sample_digest(encoded)
    if sample in known.samples:
        return _of_known(sample, known)
    try:
        look = thumbnail_of(decode_image(encoded)).tobytes()
    except BadImageError as error:
        return _Finding(sample, reason=str(error), checked=True)
    return _Finding(sample, warning=decoder_warning(encoded), checked=True, look=look)


def describe_warned(warned: Sequence[tuple[str, str]]) -> str:
    """Return one sentence that names the first images that the decoder warns of."""
    shown = "; ".join(f"{path} ({warning})" for path, warning in warned[:_SHOWN_WARNED])
    more = f"; and {len(warned) - _SHOWN_WARNED} more" if len(warned) > _SHOWN_WARNED else ""
    what = "1 image decodes" if len(warned) == 1 else f"{len(warned)} images decode"
    return (
        f"{what} with a warning and may be damaged: {shown}{more}. They are used as they are; look "
        "at them."
    )


def describe_bad(bad: Sequence[tuple[str, str]], total: int) -> str:
    """Return one sentence that names the first ten bad images of `total`, and the remedy."""
    shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:_SHOWN_BAD])
    more = f"; and {len(bad) - _SHOWN_BAD} more" if len(bad) > _SHOWN_BAD else ""
    return (
        f"{len(bad)} of {total} images cannot be used: {shown}{more}. Repair or remove them, or "
        "leave them out with data.skip_bad=true."
    )


_CACHE_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("sample", pa.string()),
        ("warning", pa.string()),
        ("look", pa.binary(THUMBNAIL_BYTES)),
    ]
)


def _read_cache(cache: Path) -> _Known:
    try:
        status = cache.stat()
    except OSError:
        return _Known({}, {})
    return _parse_cache(cache, status.st_size, status.st_mtime_ns)


# A sweep takes the inventory of many small tables against one cache.
@functools.lru_cache(maxsize=1)
def _parse_cache(cache: Path, size: int, mtime_ns: int) -> _Known:
    try:
        batches = list(mapped_batches(cache))
        columns = pa.Table.from_batches(batches).cast(_CACHE_SCHEMA).to_pydict()
        rows = zip(*(columns[name] for name in _CACHE_SCHEMA.names[:4]), strict=True)
        files = {(file, size, mtime): sample for file, size, mtime, sample in rows if file}
        seen = zip(columns["warning"], columns["look"], strict=True)
        if any(look is None or warning is None for warning, look in seen):
            return _Known({}, {})
        seen = zip(columns["warning"], columns["look"], strict=True)
        return _Known(files, dict(zip(columns["sample"], seen, strict=True)))
    # One that is damaged, or of an older version: everything is checked once more.
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError):
        return _Known({}, {})


def _remember(cache: Path, findings: Iterable[_Finding]) -> None:
    # Read again, because others may have written meanwhile. If two write at the same moment, the
    # rows of one are lost, and are checked again in its next run.
    known = _read_cache(cache)
    seen = dict(known.samples)
    latest = {stamp[0]: (*stamp, sample) for stamp, sample in known.files.items()}
    inline = dict.fromkeys(known.samples.keys() - set(known.files.values()))
    for finding in findings:
        if finding.reason:
            continue
        seen[finding.sample] = finding.warning, finding.look
        if finding.stamp is None:
            inline[finding.sample] = None
        else:
            latest[finding.stamp[0]] = (*finding.stamp, finding.sample)
    rows = [*latest.values(), *(("", 0, 0, sample) for sample in inline)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    columns += [[seen[sample][part] for sample in columns[3]] for part in range(2)]
    with (
        contextlib.suppress(InputError),
        replacing(cache) as temporary,
        pa.ipc.new_file(str(temporary), _CACHE_SCHEMA) as writer,
    ):
        writer.write_table(pa.table(columns, schema=_CACHE_SCHEMA))
