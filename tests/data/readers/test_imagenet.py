"""ImageNet by WordNet ids, and the test-only data sets whose classes are some of ImageNet's."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from safe_ray.compose import ConfigTree, load_dataset
from safe_ray.data.images import decode_image
from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from tests.data.official_tree import WNIDS, imagenet, write_classnames, write_jpegs

PACKAGED = ConfigTree.of()
IDS = tuple(sorted(WNIDS))
FOLDERS = {
    "imagenet_sketch": "imagenet-sketch/images",
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
}


def load(root, name="imagenet"):
    return load_manifest(load_dataset(PACKAGED, name).spec(), root)


@pytest.fixture
def root(tmp_path):
    imagenet(tmp_path)
    write_classnames(tmp_path / "imagenet")
    return tmp_path


def test_labels_follow_the_sorted_wordnet_ids_and_names_come_from_the_file(root):
    manifest = load(root)
    assert manifest.ids == IDS
    assert manifest.classes == tuple(WNIDS[wnid] for wnid in IDS)


def test_two_classes_may_have_one_name(root):
    assert Counter(load(root).classes)["missile"] == 2


def test_train_is_a_sorted_listing_and_val_is_the_test_split(root):
    manifest = load(root)
    assert manifest.split("train").column("path").to_pylist() == [
        f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in IDS for number in (12, 3, 7)
    ]
    assert manifest.split("train").column("label").to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert manifest.split("test").column("path").to_pylist() == [
        f"val/{wnid}/ILSVRC2012_val_{wnid[-3:]}.JPEG" for wnid in IDS
    ]
    assert manifest.split("test").column("label").to_pylist() == [0, 1, 2]


def test_nothing_is_chosen_by_what_is_tested_on(root):
    assert load(root).split("val").num_rows == 0


def test_the_images_decode(root):
    for table in load(root).tables.values():
        for data in read_image_bytes(table, range(table.num_rows)):
            assert decode_image(data).size == (10, 8)


def test_it_is_listed_and_says_whose_names_and_which_test_split_it_has(root):
    manifest = load(root)
    assert manifest.listed
    assert str(root / "imagenet/classnames.txt") in manifest.notes[0]
    assert "val is the test split" in manifest.notes[1]


def test_names_come_with_open_clip_where_there_is_no_file(root):
    (root / "imagenet/classnames.txt").unlink()
    manifest = load(root)
    assert manifest.classes == tuple(WNIDS[wnid] for wnid in IDS)
    assert "open_clip" in manifest.notes[0]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_target_has_the_classes_that_it_has_folders_of(root, name):
    folder = root / FOLDERS[name]
    for wnid in IDS[1:]:
        write_jpegs(folder / wnid, ["b.jpg", "a.jpg"])
    (folder / "README.txt").write_text("as its authors publish it")
    target = load(root, name)
    assert target.ids == IDS[1:]
    assert target.classes == ("missile", "missile")
    assert target.split("test").column("path").to_pylist() == [
        f"{wnid}/{file}" for wnid in IDS[1:] for file in ("a.jpg", "b.jpg")
    ]
    assert target.split("test").column("label").to_pylist() == [0, 0, 1, 1]
    assert target.split("train").num_rows == target.split("val").num_rows == 0
    assert set(target.ids) <= set(load(root).ids)
    data = read_image_bytes(target.split("test"), range(4))
    assert all(decode_image(image).size == (10, 8) for image in data)


def test_targets_have_their_own_list_of_names_or_imagenets_or_open_clips(root):
    folder = root / "imagenet-adversarial"
    for wnid in IDS[:2]:
        write_jpegs(folder / "imagenet-a" / wnid, ["a.jpg"])
    assert str(root) in load(root, "imagenet_a").notes[0]
    shutil.move(root / "imagenet/classnames.txt", folder / "classnames.txt")
    assert str(folder) in load(root, "imagenet_a").notes[0]
    (folder / "classnames.txt").unlink()
    assert load(root, "imagenet_a").classes == ("tench", "missile")


def test_the_folders_of_imagenet_v2_are_labels_in_numerical_order(tmp_path):
    folder = tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val"
    for number in range(1000):
        (folder / str(number)).mkdir(parents=True)
    write_jpegs(folder, ["0/a.jpeg", "2/b.jpeg", "10/c.jpeg", "999/d.jpeg"])
    target = load(tmp_path, "imagenetv2")
    assert len(target.classes) == 1000
    assert target.ids == tuple(sorted(target.ids))
    assert target.split("test").column("path").to_pylist() == [
        "0/a.jpeg",
        "2/b.jpeg",
        "10/c.jpeg",
        "999/d.jpeg",
    ]
    assert target.split("test").column("label").to_pylist() == [0, 2, 10, 999]
    assert (target.ids[0], target.classes[0]) == ("n01440764", "tench")
    assert (target.ids[999], target.classes[999]) == ("n15075141", "toilet paper")


def test_a_folder_that_is_no_class_of_imagenet_is_refused(root):
    write_jpegs(root / "imagenet-sketch/images/n99999999", ["a.jpg"])
    with pytest.raises(InputError, match=r"n99999999 is none of the 3 classes of .*classnames"):
        load(root, "imagenet_sketch")


def test_a_class_to_test_that_is_not_trained_is_refused(root):
    shutil.rmtree(root / f"imagenet/images/train/{IDS[0]}")
    with pytest.raises(InputError, match=rf"val/{IDS[0]} has no counterpart"):
        load(root)


def test_validation_images_that_are_not_sorted_into_folders_are_refused(root):
    shutil.rmtree(root / "imagenet/images/val")
    write_jpegs(root / "imagenet/images/val", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(InputError, match="1 files and no folder: sort its images"):
        load(root)


def test_a_class_without_training_images_is_refused(root):
    for file in (root / f"imagenet/images/train/{IDS[0]}").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no training image of 'tench'"):
        load(root)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_missing_folder_says_where_to_get_it(root, name):
    shutil.rmtree(root / "imagenet/images" / name)
    with pytest.raises(InputError, match=rf"no folder .*images/{name};.*https://image-net\.org"):
        load(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_only": "yes"}, "options.test_only='yes'"),
        ({"folders": "names"}, "options.folders='names'"),
        ({"split": "val"}, "unknown option 'split'"),
        ({"images": "imagenet/images/val", "test_only": True, "folders": "numbers"}, "are labels"),
    ],
)
def test_options_out_of_their_choices_are_refused(root, options, message):
    spec = DatasetSpec("mine", "imagenet", ".", options=options, target_of="imagenet")
    with pytest.raises(InputError, match=message):
        load_manifest(spec, root)


@pytest.mark.parametrize("lines", ["n01440764\n", "n01440764 tench\nn01440764 goldfish\n"])
def test_a_list_of_names_that_is_wrong_is_refused_with_the_line(root, lines):
    (root / "imagenet/classnames.txt").write_text(lines)
    with pytest.raises(InputError, match=r"classnames\.txt, line \d is 'n01440764"):
        load(root)
