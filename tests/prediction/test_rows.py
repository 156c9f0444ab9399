"""Predictions in three formats that say the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from safe_ray.errors import InputError
from safe_ray.prediction.rows import check_out, columns, predictions, writer

NAMES = ("cat", "dog", "fox")


def some(top: int) -> list:
    probabilities = torch.tensor([[0.2, 0.7, 0.1], [0.25, 0.25, 0.5]])
    return predictions(["a", "b", "c"], [None, "is broken", None], probabilities, NAMES, top)


def test_a_prediction_has_the_most_probable_classes_first() -> None:
    first, broken, last = some(2)
    assert [name for name, _ in first.top] == ["dog", "cat"]
    assert (broken.top, broken.error) == ((), "is broken")
    assert last.top[0] == ("fox", 0.5)


def test_columns_are_those_that_others_read() -> None:
    assert columns(1) == ["path", "class", "probability", "error"]
    assert columns(2)[4:] == ["class_2", "probability_2"]


@pytest.mark.parametrize("top", [1, 3])
def test_all_formats_say_the_same(tmp_path: Path, top: int) -> None:
    said = {}
    for kind in ("csv", "parquet", "jsonl"):
        out = tmp_path / f"out.{kind}"
        with writer(out, top) as rows:
            rows.write(some(top)[:1])
            rows.write(some(top)[1:])
            assert not out.exists()
        assert not list(tmp_path.glob("*.partial"))
        if kind == "csv":
            read = list(csv.DictReader(out.open()))
            said[kind] = [
                {
                    key: (float(value) if key.startswith("prob") else value) if value else None
                    for key, value in row.items()
                }
                for row in read
            ]
        elif kind == "parquet":
            said[kind] = pq.read_table(out).to_pylist()
        else:
            said[kind] = [json.loads(line) for line in out.read_text().splitlines()]
    for kind in ("parquet", "jsonl"):
        for one, other in zip(said["csv"], said[kind], strict=True):
            assert list(one) == list(other) == columns(top)
            for key, value in one.items():
                if isinstance(value, float):
                    assert other[key] == pytest.approx(value, abs=1e-6)
                else:
                    assert other[key] == value


def test_what_was_written_stays_where_the_rest_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with writer(tmp_path / "out.csv", 1) as rows:
            rows.write(some(1)[:1])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not (tmp_path / "out.csv").exists()
    assert "a,dog,0.7" in (tmp_path / "out.csv.partial").read_text()


@pytest.mark.parametrize(("name", "words"), [("a.txt", "has to end in"), ("no/a.csv", "no folder")])
def test_a_file_that_could_not_be_written_is_refused_first(
    tmp_path: Path, name: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        check_out(tmp_path / name)
