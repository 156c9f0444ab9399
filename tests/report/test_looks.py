"""Images with looks: kept whole, and refused where the weights are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.errors import InputError
from safe_ray.report.looks import read_looks, write_looks
from tests.report.html.pages import look


def test_they_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [look(0), look(1, picture=None, label="<b>")]
    write_looks(rows, tmp_path)
    for found, expected in zip(read_looks(tmp_path), rows, strict=True):
        for name, value in vars(expected).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(getattr(found, name), value)
            else:
                assert getattr(found, name) == pytest.approx(value), name


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_looks(tmp_path) == []


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"12345",
        np.ones(6, "<f4").tobytes(),
        np.array([np.nan] * 4, "<f4").tobytes(),
        np.array([-1.0], "<f4").tobytes(),
    ],
    ids=["none", "torn", "no square", "not a number", "negative"],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: bytes) -> None:
    file = write_looks([look()], tmp_path)
    table = pq.read_table(file)
    entry = {**table.to_pylist()[0], "tuned": weights}
    pq.write_table(pa.Table.from_pylist([entry], schema=table.schema), file)
    with pytest.raises(InputError, match=r"row 0 of .* no square of weights"):
        read_looks(tmp_path)
