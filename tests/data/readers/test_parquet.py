from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_ray.data.manifest import load_manifest
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec

ROWS = [
    {"image": b"0", "class_name": "dog", "split": "train", "path": "0.png", "style": "x"},
    {"image": b"1", "class_name": "cat", "split": "test", "path": "1.png", "style": "x"},
    {"image": b"2", "class_name": "cat", "split": "train", "path": "2.png", "style": "y"},
    {"image": b"3", "class_name": "dog", "split": "val", "path": "3.png", "style": "y"},
    {"image": b"4", "class_name": "dog", "split": "train", "path": "4.png", "style": "y"},
]


def load(path, **options):
    return load_manifest(DatasetSpec("pets", "parquet", str(path), options=options), path.parent)


def write(file, rows):
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), file)
    return file


def changed(row, **values):
    return [{**each, **values} if number == row else each for number, each in enumerate(ROWS)]


def test_classes_are_sorted_and_rows_keep_their_order(tmp_path):
    manifest = load(write(tmp_path / "pets.parquet", ROWS))
    assert manifest.classes == ("cat", "dog")
    assert manifest.split("train").to_pylist() == [
        {"path": "0.png", "label": 1, "image": b"0"},
        {"path": "2.png", "label": 0, "image": b"2"},
        {"path": "4.png", "label": 1, "image": b"4"},
    ]
    assert manifest.split("val").column("path").to_pylist() == ["3.png"]
    assert manifest.split("test").column("path").to_pylist() == ["1.png"]


def test_listed_classes_give_the_labels(tmp_path):
    manifest = load(write(tmp_path / "pets.parquet", ROWS), classes=["dog", "cat"])
    assert manifest.split("train").column("label").to_pylist() == [0, 1, 0]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    write(tmp_path / "b.parquet", ROWS[:2])
    write(tmp_path / "a.parquet", ROWS[2:])
    assert load(tmp_path).split("train").column("path").to_pylist() == ["2.png", "4.png", "0.png"]


def test_dictionaries_and_large_types_are_read_as_what_they_hold(tmp_path):
    plain = pa.Table.from_pylist(ROWS)
    coded = plain.set_column(1, "class_name", plain.column("class_name").dictionary_encode())
    coded = coded.set_column(0, "image", plain.column("image").cast(pa.large_binary()))
    assert load(write(tmp_path / "pets.parquet", coded)).classes == ("cat", "dog")


@pytest.mark.parametrize("column", ["image", "class_name"])
def test_a_missing_column_is_named(tmp_path, column):
    file = write(tmp_path / "pets.parquet", pa.Table.from_pylist(ROWS).drop_columns([column]))
    with pytest.raises(InputError, match=f"lacks the column '{column}'"):
        load(file)


@pytest.mark.parametrize("column", ["image", "class_name", "split", "path"])
def test_a_missing_value_is_named(tmp_path, column):
    with pytest.raises(InputError, match=f"row 3 has no {column}"):
        load(write(tmp_path / "pets.parquet", changed(3, **{column: None})))


def test_columns_of_another_type_are_refused(tmp_path):
    table = pa.Table.from_pylist(ROWS).set_column(0, "image", pa.array([[1], [2], [3], [4], [5]]))
    with pytest.raises(InputError, match=r"other types.*image: list"):
        load(write(tmp_path / "pets.parquet", table))


def test_an_unknown_split_names_the_row(tmp_path):
    with pytest.raises(InputError, match=r"row 3 is in the unknown split 'vall'.*mean 'val'"):
        load(write(tmp_path / "pets.parquet", changed(3, split="vall")))


def test_a_class_that_is_not_listed_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"class 'dog', which options\.classes.*mean 'dogs'"):
        load(write(tmp_path / "pets.parquet", ROWS), classes=["cat", "dogs"])


def test_a_listed_class_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="no training image of 'emu'"):
        load(write(tmp_path / "pets.parquet", ROWS), classes=["cat", "dog", "emu"])


def test_a_path_in_two_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"'0\.png' twice"):
        load(write(tmp_path / "pets.parquet", changed(1, path="0.png")))


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*pets\.parquet.*data\.root"):
        load(tmp_path / "pets.parquet")
    with pytest.raises(InputError, match=r"no \*\.parquet file"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1", b"x" * 100])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    file = tmp_path / "pets.parquet"
    file.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load(file)


def test_a_truncated_file_is_refused(tmp_path):
    file = write(tmp_path / "pets.parquet", ROWS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        load(file)


def without(*columns):
    return pa.Table.from_pylist(ROWS).drop_columns(list(columns))


def splits(manifest):
    return {name: table.column("path").to_pylist() for name, table in manifest.tables.items()}


def test_rows_without_a_path_are_numbered(tmp_path):
    write(tmp_path / "b.parquet", without("path").slice(3))
    write(tmp_path / "a.parquet", without("path").slice(0, 3))
    assert splits(load(tmp_path)) == {
        "train": ["00000", "00002", "00004"],
        "val": ["00003"],
        "test": ["00001"],
    }


def test_without_a_split_column_a_test_split_is_drawn(tmp_path):
    manifest = load(write(tmp_path / "pets.parquet", without("split")))
    assert {name: len(paths) for name, paths in splits(manifest).items()} == {
        "train": 3,
        "val": 0,
        "test": 2,
    }
    assert manifest.listed
    assert manifest.notes == (
        "There was no test split: 30% of each class, 2 images in all, were held out with seed 0.",
    )


def test_the_names_of_files_tell_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", without("split", "path").slice(1))
    write(tmp_path / "data" / "test-00000-of-00001.parquet", without("split", "path").slice(0, 1))
    assert splits(load(tmp_path)) == {
        "train": ["00001", "00002", "00003", "00004"],
        "val": [],
        "test": ["00000"],
    }
    write(tmp_path / "data" / "more.parquet", without("split", "path"))
    with pytest.raises(InputError, match=r"split in their names, such as .*more\.parquet"):
        load(tmp_path)


def test_hugging_faces_columns_are_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])}
    )
    rows = {
        "image": [{"bytes": row["image"], "path": "same.png"} for row in ROWS],
        "label": [["dog", "cat"].index(row["class_name"]) for row in ROWS],
    }
    file = tmp_path / "train.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    manifest = load(file)
    assert manifest.classes == ("dog", "cat")
    images = {
        image for table in manifest.tables.values() for image in table.column("image").to_pylist()
    }
    assert images == {row["image"] for row in ROWS}


def test_integers_are_indices_into_the_listed_classes(tmp_path):
    table = without("class_name").append_column("label", pa.array([1, 0, 0, 1, 1]))
    file = write(tmp_path / "pets.parquet", table)
    assert load(file).classes == ("0", "1")
    manifest = load(file, classes=["cat", "dog"])
    assert manifest.classes == ("cat", "dog")
    assert manifest.split("train").column("label").to_pylist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"label 1, but options\.classes.*names 1 classes"):
        load(file, classes=["cat"])


def test_columns_can_be_named(tmp_path):
    names = {"image": "pixels", "class_name": "kind", "split": "part", "path": "key", "style": "s"}
    table = pa.Table.from_pylist(ROWS).rename_columns(names)
    file = write(tmp_path / "pets.parquet", table)
    with pytest.raises(InputError, match=r"lacks the column 'image'.*options\.image_column"):
        load(file)
    options = {"image_column": "pixels", "label_column": "kind"}
    manifest = load(file, **options, split_column="part", path_column="key")
    assert splits(manifest)["train"] == ["0.png", "2.png", "4.png"]
    with pytest.raises(InputError, match=r"no column 'parts'.*mean 'part'"):
        load(file, **options, split_column="parts")
