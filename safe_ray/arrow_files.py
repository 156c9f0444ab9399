"""Parquet and Arrow files that others may have written: how large they come is known in time.

A Parquet file of a kilobyte can be a terabyte when it is read: compressed pages, or a dictionary
whose one large value every row repeats. So it is read by batches, whose rows are as few as its
largest dictionary demands, and what they come to is counted. Arrow files are memory-mapped, and
none of this project's is compressed.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from safe_ray.outside import MIB, check_file

LARGEST_RATIO = 20
"""Labels and paths come to several times the size of their file; images do not."""

_ALWAYS_ALLOWED = 256 * MIB
_BYTES_A_ROW = 8
_MOST_ROWS_A_BATCH = 65_536
_DICTIONARY_PAGE = 2
_MAGIC = b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_RECORD_BATCH = 3


class UnsafeFile(pa.ArrowInvalid):
    """A file that is not read: it would come to far too much, or is written as none of ours is."""


def parquet_schema(source: str | Path | pa.NativeFile) -> pa.Schema:
    """Return the schema of a Parquet file, from its footer alone.

    Raises:
        OSError: it cannot be read.
        pa.ArrowException: it is damaged.
    """
    with _arrow_errors():
        return _open(source).schema_arrow


def read_parquet(
    source: str | Path | pa.NativeFile, columns: Sequence[str] | None = None
) -> pa.Table:
    """Return columns of a Parquet file, checked to be what their types say.

    Args:
        source: an opened file, or the path of a regular file that is no link.
        columns: of the top level; None is all of them.

    Raises:
        OSError: it cannot be read.
        pa.ArrowException: it is damaged, lacks a column, or comes to far more than its size.
    """
    with _arrow_errors():
        schema = _open(source).schema_arrow
        names = schema.names if columns is None else list(columns)
        batches = list(parquet_batches(source, names))
        kept = pa.schema([schema.field(name) for name in names])
        return pa.Table.from_batches(batches, batches[0].schema if batches else kept)


def parquet_batches(
    source: str | Path | pa.NativeFile, columns: Sequence[str], rows: int = _MOST_ROWS_A_BATCH
) -> Iterator[pa.RecordBatch]:
    """Yield columns of a Parquet file as `read_parquet` returns them, some rows at a time.

    Args:
        source: see `read_parquet`.
        columns: of the top level.
        rows: how many at most.

    Raises:
        OSError, pa.ArrowException: see `read_parquet`.
    """
    with _arrow_errors():
        file = _open(source)
        names = list(columns)
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        for field in schema:
            _refuse_lists(field.name, field.type)
        allowed = _ALWAYS_ALLOWED + LARGEST_RATIO * _size(source)
        rows = min(rows, _rows_a_batch(file, source, schema, allowed))
        batches = file.iter_batches(rows, columns=names, use_threads=False)
    came_to = 0
    while True:
        with _arrow_errors():
            batch = next(batches, None)
            if batch is None:
                return
            came_to += batch.nbytes
            if came_to > allowed:
                raise UnsafeFile(f"it comes to more than {allowed} bytes")
            batch.validate(full=True)
            batch = batch.select(names)
        yield batch


def mapped_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file, mapped into memory and checked by their types.

    Raises:
        OSError: it cannot be read, is no regular file, or a link.
        pa.ArrowException: it is damaged, or compressed.
    """
    check_file(path, 2**62)
    with (
        _arrow_errors(),
        pa.memory_map(str(path)) as source,
        pa.ipc.open_file(source) as reader,
    ):
        _refuse_compressed(source)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            # Lengths and offsets must lie within the file before anything is read by them.
            batch.validate(full=True)
            yield batch


@contextlib.contextmanager
def _arrow_errors() -> Iterator[None]:
    """Let whatever Arrow and its Python side say of damaged bytes be an error of Arrow's."""
    try:
        yield
    except pa.ArrowException:
        raise
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        NotImplementedError,
        SystemError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        raise pa.ArrowInvalid(" ".join(str(error).split()) or type(error).__name__) from error


def _open(source: str | Path | pa.NativeFile) -> pq.ParquetFile:
    if isinstance(source, pa.NativeFile):
        return pq.ParquetFile(source)
    check_file(source, 2**62)
    return pq.ParquetFile(str(source))


def _size(source: str | Path | pa.NativeFile) -> int:
    return source.size() if isinstance(source, pa.NativeFile) else Path(source).stat().st_size


def _refuse_lists(name: str, kind: pa.DataType) -> None:
    """Lists have as many values as they like in a row, and no column of ours is one."""
    if pa.types.is_struct(kind):
        for inner in kind:
            _refuse_lists(f"{name}.{inner.name}", inner.type)
    elif pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise UnsafeFile(f"its column {name!r} holds {kind}")


def _rows_a_batch(
    file: pq.ParquetFile, source: str | Path | pa.NativeFile, schema: pa.Schema, allowed: int
) -> int:
    """Return how many rows may be read at once, whatever the file does with a dictionary.

    Raises:
        UnsafeFile: by what its footer says, it comes to more than is allowed.
    """
    footer = file.metadata
    claimed = footer.num_rows * _BYTES_A_ROW * max(1, len(schema))
    largest = 1
    with contextlib.ExitStack() as stack:
        pages = source
        if not isinstance(pages, pa.NativeFile):
            pages = stack.enter_context(pa.OSFile(str(source)))
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            for place in range(group.num_columns):
                chunk = group.column(place)
                if chunk.path_in_schema.partition(".")[0] not in schema.names:
                    continue
                claimed += chunk.total_uncompressed_size
                for offset in (chunk.dictionary_page_offset, chunk.data_page_offset):
                    largest = max(largest, _dictionary_bytes(pages, offset))
    if footer.num_rows < 0 or claimed > allowed:
        raise UnsafeFile(f"it comes to {claimed} bytes, more than {allowed}")
    return max(1, min(_MOST_ROWS_A_BATCH, allowed // (8 * largest)))


def _dictionary_bytes(file: pa.NativeFile, offset: int | None) -> int:
    """Return how large the dictionary is whose page begins there; 0 if none does."""
    if offset is None or not 0 <= offset < file.size():
        return 0
    header = file.read_at(16, offset)
    found: dict[int, int] = {}
    field = at = 0
    # Thrift's compact protocol: the first fields of a page's header are 32-bit integers.
    while at < len(header) and header[at] & 0x0F == 5 and header[at] >> 4:
        field += header[at] >> 4
        value = shift = 0
        more = True
        while more and at + 1 < len(header):
            at += 1
            value |= (header[at] & 0x7F) << shift
            shift += 7
            more = header[at] >= 0x80
        at += 1
        found[field] = (value >> 1) ^ -(value & 1)
    return max(0, found.get(2, 0)) if found.get(1) == _DICTIONARY_PAGE else 0


def _refuse_compressed(source: pa.NativeFile) -> None:
    """Refuse an Arrow file with a compressed batch, which says itself how much it comes to."""
    size = source.size()
    end = size - len(_MAGIC) - 4
    (length,) = struct.unpack("<i", _within(source, end, 4))
    footer = _Table.root(_within(source, end - length, length))
    for field in (2, 3):
        for place in footer.structs(field, 24):
            (offset,) = struct.unpack_from("<q", footer.content, place)
            (prefix, length) = struct.unpack("<Ii", _within(source, offset, 8))
            start = 8
            if prefix != _CONTINUATION:
                start, length = 4, prefix
            message = _Table.root(_within(source, offset + start, length))
            header = message.table(2)
            batch = header if message.byte(1) == _RECORD_BATCH else header.table(1)
            if batch.has(3):
                raise UnsafeFile("it is compressed")


def _within(source: pa.NativeFile, offset: int, length: int) -> bytes:
    """Return bytes of a file, whose place a damaged one may give anywhere."""
    if not 0 <= offset <= offset + length <= source.size():
        raise ValueError("its footer is damaged")
    return bytes(source.read_at(length, offset))


class _Table:
    """A table of a FlatBuffer, by the positions of its fields."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content = content
        self._place = place
        self._vtable = place - struct.unpack_from("<i", content, place)[0]

    @staticmethod
    def root(content: bytes) -> _Table:
        return _Table(content, struct.unpack_from("<I", content)[0])

    def has(self, field: int) -> bool:
        return self._offset(field) != 0

    def byte(self, field: int) -> int:
        offset = self._offset(field)
        return self.content[self._place + offset] if offset else 0

    def table(self, field: int) -> _Table:
        return _Table(self.content, self._follow(field))

    def structs(self, field: int, size: int) -> range:
        if not self.has(field):
            return range(0)
        start = self._follow(field)
        (count,) = struct.unpack_from("<I", self.content, start)
        if count * size > len(self.content):
            raise ValueError("its footer is damaged")
        return range(start + 4, start + 4 + count * size, size)

    def _follow(self, field: int) -> int:
        place = self._place + self._offset(field)
        return place + struct.unpack_from("<I", self.content, place)[0]

    def _offset(self, field: int) -> int:
        at = 4 + 2 * field
        if self._vtable < 0 or at >= struct.unpack_from("<H", self.content, self._vtable)[0]:
            return 0
        return struct.unpack_from("<H", self.content, self._vtable + at)[0]
