from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.comparison.rows import COLUMNS, merge, read_rows
from safe_ray.errors import InputError
from tests.comparison.results import record, records, written


def test_rows_are_read_as_they_were_written_and_other_columns_are_left(tmp_path: Path):
    folder = written(tmp_path / "a", [record("safe", 0.5, head="somewhere", seed=3)])
    (row,) = read_rows(folder)
    assert (row.method, row.title, row.cell) == ("safe", "SAFE", ("birds", 1, 3))
    assert (row.accuracy, row.macro_accuracy, row.zero_shot) == (0.5, 0.49, 0.3)
    assert read_rows(folder / "results.parquet") == (row,)


def test_a_file_that_lacks_columns_is_refused_by_their_names(tmp_path: Path):
    line = record("safe", 0.5)
    del line["method"], line["title"]
    folder = written(tmp_path, [line])
    with pytest.raises(InputError, match=r"results.parquet lacks the columns method, title: give"):
        read_rows(folder)


def test_a_missing_and_a_damaged_file_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"There is no .*results.parquet"):
        read_rows(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_accuracy": 59.8}, "test_accuracy is 59.8 in row 0 of .*a fraction from 0 to 1"),
        ({"test_macro_accuracy": None}, "test_macro_accuracy is None"),
        ({"test_accuracy": float("nan")}, "test_accuracy is nan"),
        ({"shots": 1.5}, "shots is 1.5 .*a whole number"),
        ({"method": ""}, "method is ''"),
    ],
)
def test_a_value_that_its_column_cannot_hold_is_refused(tmp_path: Path, changes, words: str):
    line = {**record("safe", 0.5), **changes}
    with pytest.raises(InputError, match=words):
        read_rows(written(tmp_path, [line]))


def test_what_two_sweeps_have_alike_is_merged(tmp_path: Path):
    first = read_rows(written(tmp_path / "a", records({"safe": 0.1, "zero_shot": 0.0})))
    second = read_rows(written(tmp_path / "b", records({"gda": 0.2, "zero_shot": 0.0})))
    rows = merge([(Path("a"), first), (Path("b"), second)])
    assert len(rows) == 3 * 24
    assert rows[: len(first)] == first


def test_what_two_sweeps_have_differently_is_refused(tmp_path: Path):
    first = read_rows(written(tmp_path / "a", [record("safe", 0.5)]))
    second = read_rows(written(tmp_path / "b", [record("safe", 0.51)]))
    words = "a and b have different results of safe on birds at 1 shot, seed 1, .*0.5000 and 0.51"
    with pytest.raises(InputError, match=words):
        merge([(Path("a"), first), (Path("b"), second)])


def test_another_title_is_no_other_result(tmp_path: Path):
    first = read_rows(written(tmp_path / "a", [record("safe", 0.5)]))
    second = read_rows(written(tmp_path / "b", [record("safe", 0.5, title="SAFE, new")]))
    assert merge([(Path("a"), first), (Path("b"), second)]) == first


def test_sweeps_without_a_row_are_refused(tmp_path: Path):
    schema = pa.Table.from_pylist([record("safe", 0.5)]).schema
    pq.write_table(schema.empty_table(), tmp_path / "results.parquet")
    assert set(COLUMNS) <= set(schema.names)
    with pytest.raises(InputError, match="The sweeps have no result"):
        merge([(tmp_path, read_rows(tmp_path))])
