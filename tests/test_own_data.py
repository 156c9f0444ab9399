"""`data=<location>`: images of one's own need no YAML, and what was assumed is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.compose import load_config
from safe_ray.errors import InputError
from safe_ray.own_data import looks_like_location, name_of
from tests.conftest import SHAPES, draw_shape


def write_shapes(folder: Path, images: int) -> Path:
    for name in SHAPES:
        (folder / name).mkdir(parents=True)
        for variant in range(images):
            (folder / name / f"{variant}.png").write_bytes(draw_shape(name, variant))
    return folder


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "my shapes", 4)


def test_a_folder_is_the_only_data_set_with_up_to_16_shots(shapes: Path, tmp_path: Path) -> None:
    config = load_config([f"data={shapes}", f"storage={tmp_path}"])
    assert config.tasks.datasets == ("my_shapes",)
    assert (config.tasks.shots, config.tasks.seeds) == ((16,), (1,))
    dataset = config.datasets["my_shapes"]
    assert (dataset.format, dataset.path, dataset.on_change) == ("folder", str(shapes), "redraw")
    assert all(template.count("{}") == 1 for template in dataset.templates)


def test_what_was_assumed_is_said_and_what_was_chosen_is_not(shapes: Path, tmp_path: Path) -> None:
    place = f"storage={tmp_path}"
    (said,) = load_config([f"data={shapes}", place]).datasets["my_shapes"].notes
    for words in (str(shapes), "'folder'", "a photo of a {}", "backbone=rn50"):
        assert words in said
    chosen = [f"data={shapes}", place, "backbone=rn50", "data.prompts=ensemble"]
    (said,) = load_config(chosen).datasets["my_shapes"].notes
    assert "backbone" not in said
    assert "a photo of a {}" not in said


def test_other_settings_go_on_top(shapes: Path, tmp_path: Path) -> None:
    config = load_config([f"data={shapes}", f"storage={tmp_path}", "tasks.shots=[1,2]"])
    assert config.tasks.shots == (1, 2)
    assert config.tasks.datasets == ("my_shapes",)


def test_a_table_is_found_out_by_looking(shapes: Path, tmp_path: Path) -> None:
    rows = [
        {"path": str(file), "label": file.parent.name} for file in sorted(shapes.glob("*/*.png"))
    ]
    file = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    config = load_config([f"data={file}", f"storage={tmp_path}"])
    assert config.datasets["labels"].format == "table"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=/no/such/folder"], "There is no file or folder /no/such/folder"),
        (["data=./a", "data=./b"], "names 2 locations"),
        (["data={shapes}", "tasks.datasets=[emoji_kinds]"], "tasks.datasets does not name"),
        (["data=defualt"], "There is no data=defualt"),
    ],
)
def test_a_mistake_gets_one_sentence(
    shapes: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    filled = [override.replace("{shapes}", str(shapes)) for override in overrides]
    with pytest.raises(InputError, match=words):
        load_config([*filled, f"storage={tmp_path}"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/photos/my pets/", "my_pets"),
        ("/photos/birds.parquet", "birds"),
        ("s3://bucket/some/data-{0..3}.tar", "data-_0..3"),
        ("/photos/日本", "own"),
    ],
)
def test_the_name_is_safe_as_a_folders(path: str, name: str) -> None:
    assert name_of(path) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://bucket/x", True), ("~/photos", True), ("./x", True), ("default", False), ("", False)],
)
def test_a_location_is_told_from_a_choice(text: str, expected: bool) -> None:
    assert looks_like_location(text) is expected


@pytest.mark.slow
def test_a_small_folder_is_cross_validated_from_end_to_end(
    shapes: Path, tmp_path: Path, tiny_config_dir: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "safe_ray.tune",
            "--config-dir",
            str(tiny_config_dir),
            f"data={shapes}",
            "backbone=tiny",
            f"storage={tmp_path}",
            "sweep=mine",
            "features.views=1",
            "search.candidates=2",
            "search.epochs=3",
            "cluster.num_cpus=2",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for words in (
        "5 classes, named after the folders",
        "There was no test split: 30% of each class, 5 images in all, were held out",
        "cross-validation, 4 folds of the 15 support images",
    ):
        assert words in done.stderr
    (entry,) = json.loads((tmp_path / "outputs" / "mine" / "summary.json").read_text())
    assert entry["dataset"] == "my_shapes"
    assert entry["protocol"]["selection"] == "cross"
    assert entry["protocol"]["validation_samples"] == 15
    assert entry["test"]["samples"] == 5
    frozen = pq.read_table(next((tmp_path / "features" / "manifests").glob("my_shapes-*.parquet")))
    assert sorted(frozen.column("split").to_pylist()) == ["test"] * 5 + ["train"] * 15
