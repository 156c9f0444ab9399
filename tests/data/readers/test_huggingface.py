"""Data sets of the package datasets are read as they were saved."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from safe_ray.data.manifest import read_image_bytes
from safe_ray.errors import InputError
from tests.data.coop_tree import png
from tests.data.image_tree import load, paths, sizes

datasets = pytest.importorskip("datasets")
load = partial(load, "huggingface")
NAMES = ["sea lion", "cat"]


def picture(number: int) -> bytes:
    return png(f"#{number:06x}")


def part(count: int, start: int = 0, **columns):
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)}
    rows = {
        "picture": [{"bytes": picture(start + n), "path": None} for n in range(count)],
        "kind": [n % 2 for n in range(count)],
    }
    for name, values in columns.items():
        rows[name] = values
        features[name] = datasets.Value("string")
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def save(folder: Path, **parts) -> Path:
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def test_features_tell_the_images_the_classes_and_the_splits(tmp_path):
    folder = save(tmp_path / "pets", train=part(6), validation=part(2, 6), test=part(4, 8))
    manifest = load(folder)
    assert manifest.classes == ("sea lion", "cat")
    assert sizes(manifest) == {"train": 6, "val": 2, "test": 4}
    assert not manifest.listed
    table = manifest.split("test")
    assert paths(manifest, "test")[:2] == ["test/00000", "test/00001"]
    assert table.column("label").to_pylist() == [0, 1, 0, 1]
    assert read_image_bytes(table, [3, 0]) == [picture(11), picture(8)]


def test_a_selection_is_saved_and_read_as_one(tmp_path):
    folder = save(tmp_path / "pets", train=part(8).select([7, 0, 3, 2]), test=part(2))
    table = load(folder).split("train")
    assert read_image_bytes(table, range(4)) == [picture(number) for number in (7, 0, 3, 2)]


def test_without_a_test_split_one_is_found_or_drawn(tmp_path):
    validated = load(save(tmp_path / "a", train=part(6), validation=part(2, 6)))
    assert sizes(validated) == {"train": 6, "val": 0, "test": 2}
    part(20).save_to_disk(str(tmp_path / "b"))
    drawn = load(tmp_path / "b")
    assert sizes(drawn) == {"train": 14, "val": 0, "test": 6}
    assert drawn.listed


def test_a_test_split_without_labels_is_left_out(tmp_path):
    hidden = part(4, 6).remove_columns("kind").add_column("kind", [-1] * 4)
    hidden = hidden.cast_column("kind", datasets.ClassLabel(names=NAMES))
    manifest = load(save(tmp_path / "pets", train=part(6), validation=part(2, 10), test=hidden))
    assert sizes(manifest) == {"train": 6, "val": 0, "test": 2}
    note = f"Left out of {tmp_path}/pets: 4 images of test without a label."
    assert note in manifest.notes


def test_columns_can_be_named_and_labels_be_text(tmp_path):
    data = part(4, name=["b", "a", "b", "a"])
    folder = save(tmp_path / "pets", train=data, test=data, extra=data)
    manifest = load(folder, image_column="picture", label_column="name")
    assert manifest.classes == ("a", "b")
    assert f"Left out of {folder}: its split 'extra'." in manifest.notes
    with pytest.raises(InputError, match=r"no column 'nam'.*mean 'name'"):
        load(folder, label_column="nam")
    with pytest.raises(InputError, match=r"no such column of the feature Image"):
        load(folder, image_column="name")


def test_images_may_stay_files(tmp_path):
    files = []
    for number in range(4):
        file = tmp_path / f"{number}.png"
        file.write_bytes(picture(number))
        files.append(str(file))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    data = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 0, 1]}, features=features)
    # Saving puts the images in, so the table is made by hand.
    data = data.cast_column("image", datasets.Image(decode=False))
    data.save_to_disk(str(tmp_path / "pets"))
    manifest = load(tmp_path / "pets")
    assert sum(sizes(manifest).values()) == 4
    table = manifest.split("train")
    assert set(read_image_bytes(table, range(table.num_rows))) <= {picture(n) for n in range(4)}


def test_what_is_no_such_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not written by save_to_disk"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"no folder .*gone.*hf://owner/name"):
        load(tmp_path / "gone")
    plain = datasets.Dataset.from_dict({"x": [1], "label": ["a"]})
    plain.save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(InputError, match=r"no column of the feature Image \(it has x: Value"):
        load(tmp_path / "plain")
    (tmp_path / "plain" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be loaded as a Hugging Face data set"):
        load(tmp_path / "plain")


def test_without_the_package_its_installation_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'safe-ray\[huggingface\]'"):
        load("hf://someone/pets")


def test_a_hub_that_is_out_of_reach_is_said_so(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf://nobody/nothing cannot be loaded .*: "):
        load("hf://nobody/nothing")
