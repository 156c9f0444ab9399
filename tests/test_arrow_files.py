"""Parquet and Arrow files that are small and come to far too much."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.arrow_files import (
    UnsafeFile,
    mapped_batches,
    parquet_batches,
    parquet_schema,
    read_parquet,
)

TABLE = pa.table(
    {
        "name": ["cat", "dog", "cat"],
        "image": [b"1", b"22", b"333"],
        "count": pa.array([1, 2, 3], pa.int32()),
        "pair": [{"bytes": b"x", "path": None}] * 3,
    }
)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"row_group_size": 1}])
def test_a_table_is_read_as_it_was_written(tmp_path: Path, options: dict[str, int]) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(TABLE, file, **options)
    assert read_parquet(file).to_pylist() == TABLE.to_pylist()
    assert read_parquet(file, ["count", "name"]).column_names == ["count", "name"]
    assert parquet_schema(file).names == TABLE.column_names
    batches = list(parquet_batches(file, ["name"], rows=2))
    assert max(batch.num_rows for batch in batches) <= 2
    assert sum(batch.num_rows for batch in batches) == 3


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    pq.write_table(TABLE.slice(0, 0), file)
    assert read_parquet(file, ["name"]).schema.types == [pa.string()]


@pytest.mark.timeout(60)
def test_a_dictionary_of_one_large_value_is_not_written_out(tmp_path: Path) -> None:
    value = pa.array(["x" * 10_000_000])
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), value)
    file = tmp_path / "bomb.parquet"
    pq.write_table(
        pa.table({"label": column}),
        file,
        compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=100_000_000,
    )
    assert file.stat().st_size < 2000
    before = pa.total_allocated_bytes()
    with pytest.raises(UnsafeFile, match="comes to more than"):
        read_parquet(file)
    assert pa.total_allocated_bytes() - before < 2**20


@pytest.mark.timeout(60)
def test_pages_that_inflate_a_thousandfold_are_refused_by_their_footer(tmp_path: Path) -> None:
    file = tmp_path / "bomb.parquet"
    zeros = pa.array([bytes(1_000_000)] * 400, pa.large_binary())
    pq.write_table(pa.table({"image": zeros}), file, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < 200_000
    began = time.process_time()
    with pytest.raises(UnsafeFile, match="more than"):
        read_parquet(file)
    assert time.process_time() - began < 2


def test_lists_have_no_place_in_a_column(tmp_path: Path) -> None:
    file = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"name": [["a"], ["b"]]}), file)
    with pytest.raises(UnsafeFile, match="'name' holds list"):
        read_parquet(file)


def test_text_that_is_no_unicode_is_damage(tmp_path: Path) -> None:
    file = tmp_path / "text.parquet"
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    pq.write_table(pa.table({"name": broken}), file)
    with pytest.raises(pa.ArrowInvalid, match="UTF8"):
        read_parquet(file)


def test_a_mapped_file_gives_its_batches(tmp_path: Path) -> None:
    file = tmp_path / "table.arrow"
    with pa.ipc.new_file(str(file), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)
    assert [batch.num_rows for batch in mapped_batches(file)] == [2, 1]


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_batch_or_dictionary_is_refused(tmp_path: Path, compression: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    columns = {"zeros": np.zeros(100_000), "name": pa.array(["a"] * 100_000).dictionary_encode()}
    for name, column in columns.items():
        file = tmp_path / f"{name}.arrow"
        table = pa.table({name: column})
        with pa.ipc.new_file(str(file), table.schema, options=options) as writer:
            writer.write_table(table)
        with pytest.raises(UnsafeFile, match="it is compressed"):
            list(mapped_batches(file))


@pytest.mark.parametrize("length", [-1, -(2**31), 2**31 - 1, 0, 7])
def test_a_footer_that_lies_about_its_length_is_damage(tmp_path: Path, length: int) -> None:
    file = tmp_path / "table.arrow"
    with pa.ipc.new_file(str(file), TABLE.schema) as writer:
        writer.write_table(TABLE)
    content = file.read_bytes()
    file.write_bytes(content[:-10] + length.to_bytes(4, "little", signed=True) + content[-6:])
    with pytest.raises((pa.ArrowException, OSError)):
        list(mapped_batches(file))


def test_a_source_may_be_a_buffer() -> None:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer)
    assert read_parquet(pa.BufferReader(buffer.getvalue()), ["name"]).num_rows == 3
