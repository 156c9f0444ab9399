"""Bad images stop a sweep with one list over all its splits, or are left out and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.features.inventory import no_progress
from safe_ray.search import preparation
from safe_ray.specs import DatasetSpec


def rows_of(dataset: DatasetSpec) -> list[dict[str, Any]]:
    return pq.read_table(dataset.path).to_pylist()


def config_for(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> SweepConfig:
    data = folder / "shapes.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    file = folder / "conf" / "dataset" / "shapes.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"format": "parquet", "path": str(data)}))
    settings = ["tasks.datasets=[shapes]", "tasks.shots=[8]", "tasks.seeds=[1]"]
    return load_config([*settings, f"storage={folder}", *overrides], folder / "conf")


def check(config: SweepConfig) -> preparation.CheckedImages:
    manifests = preparation.read_manifests(config)
    episodes = preparation.draw_episodes(config, manifests)
    return preparation.check_images(config, manifests, episodes, lambda name: no_progress)


@pytest.fixture
def broken(tiny_dataset: DatasetSpec) -> list[dict[str, Any]]:
    """One bad image in each split."""
    rows = rows_of(tiny_dataset)
    for split in ("train", "val", "test"):
        next(row for row in rows if row["split"] == split)["image"] = b"no image"
    return rows


def test_bad_images_of_all_splits_are_named_at_once(
    tmp_path: Path, broken: list[dict[str, Any]]
) -> None:
    with pytest.raises(InputError, match=r"^3 of .* red_circle/000.*red_circle/008.*skip_bad=true"):
        check(config_for(tmp_path, broken))


def test_bad_images_are_left_out_and_counted_when_asked(
    tmp_path: Path, broken: list[dict[str, Any]]
) -> None:
    images = check(config_for(tmp_path, broken, "data.skip_bad=true"))
    assert len(images.bad) == 3
    task = images.tasks[0]
    assert len(task.support.samples) == 8 * 5 - 1
    assert len(task.validation.samples) == 4 * 5 - 1
    assert len(images.tests["shapes"].samples) == 6 * 5 - 1


def test_nothing_to_test_on_is_refused(tmp_path: Path, tiny_dataset: DatasetSpec) -> None:
    rows = [row for row in rows_of(tiny_dataset) if row["split"] != "test"]
    with pytest.raises(InputError, match="no test split"):
        check(config_for(tmp_path, rows))


def test_nothing_to_validate_on_asks_for_cross_validation(
    tmp_path: Path, tiny_dataset: DatasetSpec
) -> None:
    rows = [row for row in rows_of(tiny_dataset) if row["split"] != "val"]
    with pytest.raises(InputError, match=r"search\.validation=cross"):
        check(config_for(tmp_path, rows))
    images = check(config_for(tmp_path, rows, "search.validation=cross"))
    assert images.tasks[0].validation.samples == []
