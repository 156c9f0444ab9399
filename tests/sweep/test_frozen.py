"""A split that was made from a listing is kept, and carries over to other machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.data.manifest import Manifest
from safe_ray.data.readers.base import FILES_SCHEMA
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from safe_ray.sweep.frozen import compare, freeze

SPEC = DatasetSpec("pets", "folder", "/photos/pets")


def manifest(train: list[str], test: list[str]) -> Manifest:
    def table(paths: list[str]) -> pa.Table:
        return pa.table(
            {
                "path": paths,
                "label": [int(path.startswith("dog")) for path in paths],
                "file": [f"/photos/pets/{path}" for path in paths],
            },
            schema=FILES_SCHEMA,
        )

    tables = {"train": table(train), "val": table([]), "test": table(test)}
    return Manifest("pets", ("cat", "dog"), ("{}",), tables, listed=True)


BEFORE = manifest(["cat/1.png", "dog/1.png"], ["cat/2.png", "dog/2.png"])
AFTER = manifest(["cat/1.png", "dog/1.png", "dog/3.png"], ["cat/2.png"])


def keep(now: Manifest, spec: DatasetSpec, folder: Path, redraw: bool) -> str | None:
    said = compare(now, spec, folder, redraw)
    freeze(now, spec, folder)
    return said


def test_the_split_is_kept_as_a_table_of_paths_labels_and_splits(tmp_path: Path) -> None:
    assert keep(BEFORE, SPEC, tmp_path, redraw=False) is None
    (file,) = tmp_path.glob("*.parquet")
    assert pq.read_table(file).to_pylist() == [
        {"path": "cat/1.png", "label": "cat", "split": "train"},
        {"path": "dog/1.png", "label": "dog", "split": "train"},
        {"path": "cat/2.png", "label": "cat", "split": "test"},
        {"path": "dog/2.png", "label": "dog", "split": "test"},
    ]


def test_the_same_images_are_the_same_split(tmp_path: Path) -> None:
    keep(BEFORE, SPEC, tmp_path, redraw=False)
    assert keep(BEFORE, SPEC, tmp_path, redraw=False) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_other_images_are_refused_with_what_differs_and_the_old_split_stays(
    tmp_path: Path,
) -> None:
    keep(BEFORE, SPEC, tmp_path, redraw=False)
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    with pytest.raises(InputError, match=f"1 new or moved, 1 gone.*delete {file}"):
        keep(AFTER, SPEC, tmp_path, redraw=False)
    assert file.read_bytes() == kept


def test_other_images_are_taken_when_asked_and_it_is_said(tmp_path: Path) -> None:
    keep(BEFORE, SPEC, tmp_path, redraw=True)
    said = keep(AFTER, SPEC, tmp_path, redraw=True)
    assert said is not None
    assert "1 new or moved, 1 gone" in said
    assert keep(AFTER, SPEC, tmp_path, redraw=True) is None


def test_another_place_or_other_options_are_another_split(tmp_path: Path) -> None:
    keep(BEFORE, SPEC, tmp_path, redraw=False)
    assert keep(AFTER, replace(SPEC, path="/other"), tmp_path, redraw=False) is None
    assert keep(AFTER, replace(SPEC, options={"seed": 1}), tmp_path, redraw=False) is None
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    keep(BEFORE, SPEC, tmp_path, redraw=False)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        keep(BEFORE, SPEC, tmp_path, redraw=False)


def test_a_split_may_be_compared_without_being_kept(tmp_path: Path) -> None:
    assert compare(BEFORE, SPEC, tmp_path, redraw=True) is None
    assert not list(tmp_path.iterdir())
    keep(BEFORE, SPEC, tmp_path, redraw=True)
    (file,) = tmp_path.iterdir()
    kept = file.read_bytes()
    said = compare(AFTER, SPEC, tmp_path, redraw=True)
    assert said is not None
    assert "have changed since last time" in said
    assert file.read_bytes() == kept
    with pytest.raises(InputError, match="restore them"):
        compare(AFTER, SPEC, tmp_path, redraw=False)
