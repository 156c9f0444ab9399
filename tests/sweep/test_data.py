"""Bad images stop a sweep with one list over all its splits, or are left out and counted."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.features.inventory import no_progress
from safe_ray.specs import DatasetSpec
from safe_ray.sweep import data, images
from safe_ray.sweep.begin import run_extract
from tests.data.coop_tree import OPTIONS, entries, write_coop
from tests.data.image_tree import write_tree


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


def check(config: SweepConfig) -> images.CheckedImages:
    manifests = data.read_manifests(config)
    episodes = data.draw_episodes(config, manifests)
    return images.check_images(config, manifests, episodes, lambda name: no_progress)


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


def test_nothing_to_test_on_is_refused(tmp_path: Path) -> None:
    split = entries(["cat", "dog"], {"train": 3, "val": 2, "test": 0})
    write_coop(tmp_path, split)
    file = tmp_path / "conf" / "dataset" / "tiny.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"format": "coop", "path": "tiny", "options": OPTIONS}))
    settings = ["tasks.datasets=[tiny]", f"data.root={tmp_path}", f"storage={tmp_path}"]
    with pytest.raises(InputError, match="no test split"):
        check(load_config(settings, tmp_path / "conf"))


def test_a_table_without_a_test_split_is_tested_on_its_validation_split_and_it_is_said(
    tmp_path: Path, tiny_dataset: DatasetSpec
) -> None:
    rows = [row for row in rows_of(tiny_dataset) if row["split"] != "test"]
    config = config_for(tmp_path, rows, "tasks.shots=[1]")
    manifest = data.read_manifests(config)["shapes"]
    assert manifest.split("test").num_rows == sum(row["split"] == "val" for row in rows)
    assert manifest.split("val").num_rows == 0
    assert "test" in " ".join(manifest.notes)


def without_validation(dataset: DatasetSpec) -> list[dict[str, Any]]:
    return [row for row in rows_of(dataset) if row["split"] != "val"]


@pytest.mark.parametrize("asked", ["coop", "full"])
def test_nothing_to_validate_on_asks_for_cross_validation(
    tmp_path: Path, tiny_dataset: DatasetSpec, asked: str
) -> None:
    rows = without_validation(tiny_dataset)
    with pytest.raises(InputError, match=r"search\.validation=cross"):
        check(config_for(tmp_path, rows, f"search.validation={asked}"))
    images = check(config_for(tmp_path, rows, "search.validation=cross"))
    assert images.tasks[0].validation.samples == []


def test_with_nothing_to_validate_on_the_support_set_is_cross_validated_and_it_is_said(
    tmp_path: Path, tiny_dataset: DatasetSpec
) -> None:
    config = config_for(tmp_path, without_validation(tiny_dataset))
    task = check(config).tasks[0]
    assert (task.selection, task.validation.samples) == ("cross", [])
    manifests = data.read_manifests(config)
    said = data.assumptions(config, manifests, data.draw_episodes(config, manifests))
    assert len(said) == 1
    assert "cross-validation, 4 folds of the 40 support images" in said[0]


def test_what_the_shots_leave_of_the_training_images_validates_and_it_is_said(
    tmp_path: Path, tiny_dataset: DatasetSpec
) -> None:
    config = config_for(tmp_path, without_validation(tiny_dataset), "tasks.shots=[3]")
    task = check(config).tasks[0]
    assert task.selection == "coop"
    assert len(task.validation.samples) == 3 * 5
    assert not set(task.validation.samples) & set(task.support.samples)
    manifests = data.read_manifests(config)
    said = data.assumptions(config, manifests, data.draw_episodes(config, manifests))
    assert len(said) == 1
    assert "15 training images that the support set leaves over" in said[0]


def test_the_whole_validation_split_can_be_asked_for(
    tmp_path: Path, tiny_dataset: DatasetSpec
) -> None:
    rows = rows_of(tiny_dataset)
    task = check(config_for(tmp_path, rows, "search.validation=full", "tasks.shots=[1]")).tasks[0]
    assert task.selection == "full"
    assert len(task.validation.samples) == sum(row["split"] == "val" for row in rows)
    assert task.episode.digest != check(config_for(tmp_path, rows)).tasks[0].episode.digest


def test_what_the_decoder_warns_of_is_said(tmp_path: Path, tiny_dataset: DatasetSpec) -> None:
    rows = rows_of(tiny_dataset)
    buffer = io.BytesIO()
    Image.effect_noise((90, 90), 80).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    tested = next(row for row in rows if row["split"] == "test")
    tested["image"] = jpeg[: len(jpeg) // 2] + bytes(400) + jpeg[len(jpeg) // 2 + 400 :]
    (said,) = check(config_for(tmp_path, rows)).remarks()
    assert f"1 image decodes with a warning and may be damaged: {tested['path']}" in said


def test_extraction_says_what_was_assumed_before_it_looks_at_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "pets", {"cat/a": 4, "dog/a": 4})
    (tmp_path / "pets/cat/a/000.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 8 images cannot be used"):
        run_extract(load_config([f"data={tmp_path}/pets", f"storage={tmp_path}"]))
    said = capsys.readouterr().err
    for words in ("read as format 'folder'", "2 classes, named after", "class_level=2", "30% of"):
        assert words in said


def said_about(config: SweepConfig) -> list[str]:
    manifests = data.read_manifests(config)
    return data.assumptions(config, manifests, data.draw_episodes(config, manifests))


@pytest.mark.parametrize("validation", ["coop", "cross"])
def test_classes_of_unequal_size_that_are_chosen_on_as_equals_are_said(
    tmp_path: Path, tiny_dataset: DatasetSpec, validation: str
) -> None:
    rows = rows_of(tiny_dataset)
    setting = f"search.validation={validation}"
    assert said_about(config_for(tmp_path, rows, setting)) == []
    common = [row for row in rows if row["class_name"] == "red circle"]
    unequal = [
        *rows,
        *({**row, "path": f"{place}/{row['path']}"} for row in common for place in range(3)),
    ]
    chosen_by = "evaluation.metric=mean_per_class"
    settings = (setting, chosen_by, "tasks.shots=[2]", "tasks.seeds=[1,2]", "search.folds=2")
    (said,) = said_about(config_for(tmp_path, unequal, *settings))
    # 72 of 144 images instead of a fifth of them.
    assert said.startswith("shapes: ")
    assert "144 images" in said
    assert "total variation distance 0.30" in said
    assert "accuracy and mean per class accuracy" in said
    assert chosen_by in said
    assert said_about(config_for(tmp_path, unequal, "search.validation=full")) == []
