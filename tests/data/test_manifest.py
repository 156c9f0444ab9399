from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest

from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.errors import InputError
from tests.data.coop_tree import OPTIONS, entries, png, write_coop, write_images

CLASSES = ["cat", "dog", "sea_lion"]
COUNTS = {"train": 4, "val": 2, "test": 3}


@pytest.fixture
def split():
    return entries(CLASSES, COUNTS)


def test_a_manifest_has_a_table_a_split_with_labels_that_index_the_classes(tmp_path, split):
    manifest = load_manifest(write_coop(tmp_path, split), tmp_path)
    assert manifest.classes == ("cat", "dog", "sea_lion")
    for name, count in COUNTS.items():
        table = manifest.split(name)
        assert table.num_rows == count * len(CLASSES)
        assert table.schema.field("label").type == pa.int32()
        assert table.column("path").to_pylist() == [path for path, _, _ in split[name]]
        assert table.column("label").to_pylist() == [label for _, label, _ in split[name]]


def test_bytes_are_read_in_the_order_asked_for_whatever_the_format(tmp_path, split, tiny_dataset):
    spec = write_coop(tmp_path, split)
    write_images(tmp_path, split)
    manifest = load_manifest(spec, tmp_path)
    (tmp_path / "tiny" / "images" / split["train"][3][0]).write_bytes(png("blue"))
    assert read_image_bytes(manifest.split("train"), [3, 0]) == [png("blue"), png()]

    shapes = load_manifest(tiny_dataset, tmp_path).split("train")
    stored = shapes.column("image").to_pylist()
    assert read_image_bytes(shapes, [7, 1, 7]) == [stored[7], stored[1], stored[7]]


def test_a_missing_image_is_named_when_it_is_read(tmp_path, split):
    manifest = load_manifest(write_coop(tmp_path, split), tmp_path)
    with pytest.raises(InputError, match=r"sea_lion/train_0\.png.*No such file.*skip_bad"):
        read_image_bytes(manifest.split("train"), [0])


def test_an_unknown_split_is_refused(tmp_path, split):
    manifest = load_manifest(write_coop(tmp_path, split), tmp_path)
    with pytest.raises(InputError, match=r"no split 'valid'.*'train', 'val', 'test'"):
        manifest.split("valid")


def test_an_unknown_format_names_the_nearest(tmp_path, split):
    spec = dataclasses.replace(write_coop(tmp_path, split), format="parkett")
    with pytest.raises(InputError, match=r"'parkett'.*'coop', .*'parquet'.*mean 'parquet'"):
        load_manifest(spec, tmp_path)


def test_a_template_without_a_slot_is_refused(tmp_path, split):
    spec = dataclasses.replace(write_coop(tmp_path, split), templates=("a photo",))
    with pytest.raises(InputError, match=r"'a photo' of data set 'tiny'"):
        load_manifest(spec, tmp_path)


def test_an_option_that_the_format_does_not_have_is_refused(tmp_path, split):
    spec = write_coop(tmp_path, split, {**OPTIONS, "image": "images"})
    with pytest.raises(InputError, match=r"unknown option 'image'.*mean 'images'"):
        load_manifest(spec, tmp_path)


def test_a_label_outside_the_listed_classes_names_the_row(tmp_path, split):
    spec = write_coop(tmp_path, split, {**OPTIONS, "classes": ["cat", "dog"]})
    with pytest.raises(InputError, match=r"split 'train', row 0 has the label 2.*2 classes"):
        load_manifest(spec, tmp_path)


@pytest.mark.parametrize("classes", [["cat", "dog", "dog"], ["cat", "sea lion", "Sea_Lion"]])
def test_two_classes_of_one_name_are_refused(tmp_path, classes):
    split = {"train": [[f"{label}.png", label, name] for label, name in enumerate(classes)]}
    with pytest.raises(InputError, match=r"two classes of one name.*label 1.*label 2"):
        load_manifest(write_coop(tmp_path, split), tmp_path)


def test_a_class_without_a_name_is_refused(tmp_path):
    split = {"train": [["a.png", 0, "cat"], ["b.png", 1, " _ "]]}
    with pytest.raises(InputError, match="empty class name"):
        load_manifest(write_coop(tmp_path, split), tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path, split):
    split["train"] = [row for row in split["train"] if row[2] != "dog"]
    with pytest.raises(InputError, match="no training image of 'dog'"):
        load_manifest(write_coop(tmp_path, split), tmp_path)


def test_one_class_leaves_nothing_to_tell_apart(tmp_path):
    with pytest.raises(InputError, match="one class 'cat'"):
        load_manifest(write_coop(tmp_path, entries(["cat"], COUNTS)), tmp_path)


def test_no_classes_at_all_are_refused(tmp_path):
    with pytest.raises(InputError, match="no classes"):
        load_manifest(write_coop(tmp_path, {"train": []}), tmp_path)


@pytest.mark.parametrize("other", ["train", "val", "test"])
def test_an_image_occurs_once(tmp_path, split, other):
    split[other].append(split["train"][1])
    row = len(split[other]) - 1
    message = rf"sea_lion/train_1\.png' twice, in split 'train', row 1, and in split '{other}', "
    with pytest.raises(InputError, match=message + f"row {row}"):
        load_manifest(write_coop(tmp_path, split), tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/a.png", "a/../../b.png", ""])
def test_paths_stay_inside_the_image_folder(tmp_path, split, path):
    split["test"][2][0] = path
    with pytest.raises(InputError, match="split 'test', row 2"):
        load_manifest(write_coop(tmp_path, split), tmp_path)
