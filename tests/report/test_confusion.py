"""What was taken for what: kept without its zeros, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.errors import InputError
from safe_ray.report.confusion import Confusion, count_pairs, read_confusions, write_confusions

LABELS, SAID = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 2, 2, 1, 0, 3])
NAMES = ("cat", "dog", "grünes Quadrat", "hen")
ROW = Confusion("foods", 2, 1, "safe", NAMES, *count_pairs(LABELS, SAID, 4))


def test_it_counts_each_pair() -> None:
    expected = [[1, 0, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert ROW.matrix().tolist() == expected
    assert ROW.samples.tolist() == [3, 2, 0, 1]
    assert ROW.right.tolist() == [1, 1, 0, 1]
    assert ROW.class_accuracy == pytest.approx([1 / 3, 1 / 2, np.nan, 1.0], nan_ok=True)
    assert ROW.mistaken() == [(2, 0, 2), (1, 1, 0)]


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_confusions([replace(ROW, method="zero_shot", seed=2), ROW], tmp_path)
    first, second = read_confusions(tmp_path)
    assert (first.seed, second.seed, second.method) == (1, 2, "zero_shot")
    assert first.class_names == NAMES
    assert first.matrix().tolist() == ROW.matrix().tolist()


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_confusions(tmp_path) == []


def whole(*values: int) -> bytes:
    return np.array(values, "<i4").tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": "no list"},
        {"classes": '["one", 2]'},
        {"label": whole(0)},
        {"label": b"123"},
        {"said": whole(0, 2, 0, 9, 3)},
        {"count": whole(1, -2, 1, 1, 1)},
        {"said": None},
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    file = write_confusions([ROW], tmp_path)
    table = pq.read_table(file)
    entry = {**table.to_pylist()[0], **changes}
    pq.write_table(pa.Table.from_pylist([entry], schema=table.schema), file)
    with pytest.raises(InputError, match="writes it anew"):
        read_confusions(tmp_path)
