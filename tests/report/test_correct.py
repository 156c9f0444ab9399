from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.errors import InputError
from safe_ray.report.correct import Correct, read_correct, write_correct


def plain(row: Correct) -> tuple[str, int, int, str, list[bool]]:
    return row.dataset, row.shots, row.seed, row.method, row.right.tolist()


@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 40])
def test_outcomes_come_back_as_they_were(tmp_path: Path, images: int) -> None:
    right = np.random.default_rng(images).random(images) < 0.5
    row = Correct("foods", 2, 2**32 - 1, "safe", right)
    write_correct([row], tmp_path)
    (read,) = read_correct(tmp_path)
    assert plain(read) == plain(row)
    assert read.right.dtype == bool


def test_rows_are_sorted_by_task_and_have_a_bit_an_image(tmp_path: Path) -> None:
    right = np.array([True, False, True, True, False, False, False, False, True])
    rows = [
        Correct(name, shots, 1, method, right)
        for name, shots in (("foods", 2), ("birds", 16), ("foods", 1))
        for method in ("zero_shot", "safe")
    ]
    file = write_correct(rows, tmp_path)
    assert file == tmp_path / "correct.parquet"
    table = pq.read_table(file)
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "dataset": "string",
        "shots": "int32",
        "seed": "int64",
        "method": "string",
        "samples": "int32",
        "correct": "binary",
    }
    first, *_ = table.to_pylist()
    assert (first["correct"], first["samples"]) == (bytes([0b10110000, 0b10000000]), 9)
    assert [(r.dataset, r.shots, r.method) for r in read_correct(tmp_path)] == [
        ("birds", 16, "zero_shot"),
        ("birds", 16, "safe"),
        ("foods", 1, "zero_shot"),
        ("foods", 1, "safe"),
        ("foods", 2, "zero_shot"),
        ("foods", 2, "safe"),
    ]


def test_a_folder_without_the_file_has_no_rows(tmp_path: Path) -> None:
    assert read_correct(tmp_path) == []


def test_a_file_that_is_not_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "correct.parquet"
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_correct(tmp_path)
    pq.write_table(pa.table({"dataset": ["foods"]}), file)
    with pytest.raises(InputError, match=r"lacks the columns \['shots', 'seed'"):
        read_correct(tmp_path)


@pytest.mark.parametrize("samples", [8, 17, None])
def test_a_row_of_another_length_than_it_says_is_refused(tmp_path: Path, samples) -> None:
    right = np.ones(9, bool)
    file = write_correct([Correct("foods", 2, 1, "safe", right)], tmp_path)
    table = pq.read_table(file)
    at = table.column_names.index("samples")
    pq.write_table(table.set_column(at, "samples", pa.array([samples], pa.int32())), file)
    with pytest.raises(InputError, match=r"row 0 of .*correct\.parquet has not one bit"):
        read_correct(tmp_path)
