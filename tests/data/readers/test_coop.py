from __future__ import annotations

import pytest

from safe_ray.data.manifest import load_manifest
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from tests.data.coop_tree import OPTIONS, entries, write_coop

CLASSES = ["cat", "dog"]


def load(root, split, options=None):
    return load_manifest(write_coop(root, split, options), root)


def test_files_lie_in_the_image_folder(tmp_path):
    manifest = load(tmp_path, entries(CLASSES, {"train": 1}))
    expected = [str(tmp_path / "tiny/images" / f"{name}/train_0.png") for name in ("dog", "cat")]
    assert manifest.split("train").column("file").to_pylist() == expected


def test_val_and_test_may_be_left_out(tmp_path):
    manifest = load(tmp_path, entries(CLASSES, {"train": 2}))
    assert manifest.split("val").num_rows == manifest.split("test").num_rows == 0
    assert manifest.split("val").schema == manifest.split("train").schema


def test_listed_classes_rename_those_of_the_file(tmp_path):
    options = {**OPTIONS, "classes": ["kitten", "puppy"]}
    assert load(tmp_path, entries(CLASSES, {"train": 1}), options).classes == ("kitten", "puppy")


@pytest.mark.parametrize(
    ("classes", "message"),
    [("cat", "give a list"), ([True, "dog"], "class True.*quotes"), (3, "give a list")],
)
def test_listed_classes_are_a_list_of_text(tmp_path, classes, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, entries(CLASSES, {"train": 1}), {**OPTIONS, "classes": classes})


def test_the_split_file_must_be_named(tmp_path):
    with pytest.raises(InputError, match=r"needs options\.split"):
        load(tmp_path, entries(CLASSES, {"train": 1}), {"images": "images"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**OPTIONS, "split": "nowhere.json"}, r"no file .*nowhere\.json.*data\.root"),
        ({**OPTIONS, "images": "nowhere"}, r"no folder .*nowhere"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, entries(CLASSES, {"train": 1}), options)


def test_a_missing_data_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=rf"no folder {tmp_path}/eurosat;.*data\.root"):
        load_manifest(DatasetSpec("eurosat", "coop", "eurosat", options=OPTIONS), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "no list 'train'"),
        ('{"val": []}', "no list 'train'"),
        ('{"train": {}}', "something else than a list under 'train'"),
        ('{"train": [["a.png", 0]]}', r"row 0 is \['a.png', 0\]"),
        ('{"train": [["a.png", "0", "cat"]]}', "row 0 is"),
        ('{"train": [["a.png", true, "cat"]]}', "row 0 is"),
        ('{"train": [["a.png", 0.5, "cat"]]}', "row 0 is"),
        ('{"train": [["a.png", 0, "cat"], ["b.png", -1, "dog"]]}', "row 1 has the label -1"),
        ('{"train": [["a.png", 99999999999, "cat"]]}', "row 0 has the label 99999999999"),
        (
            '{"train": [["a.png", 0, "cat"], ["b.png", 2, "dog"]]}',
            "label 2 but no sample of label 1",
        ),
        (
            '{"train": [["a.png", 0, "cat"], ["b.png", 1, "dog"]], "test": [["c.png", 1, "d"]]}',
            "split 'test', row 0 names class 1 'd', but it was 'dog'",
        ),
    ],
)
def test_a_bad_split_file_is_refused_with_the_place(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, content)
