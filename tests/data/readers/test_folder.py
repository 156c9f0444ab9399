"""A folder of class folders is a data set as it stands."""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from tests.data.coop_tree import png
from tests.data.image_tree import load, paths, sizes, write_tree

load = partial(load, "folder")
GROUPED = ("m/a", "m/b", "p/a", "p/b")


def test_classes_are_named_after_their_folders(tmp_path):
    manifest = load(write_tree(tmp_path, {"sea_lion": 4, "cat": 4, "Übung": 4}))
    assert manifest.classes == ("cat", "sea_lion", "Übung")
    assert manifest.ids is None
    assert manifest.prompts[1] == ["a photo of a sea lion."]
    assert manifest.notes[0] == f"3 classes, named after the folders in {tmp_path}."


def test_a_test_split_is_held_out_of_each_class(tmp_path):
    counts = {"cat": 10, "dog": 5, "emu": 2, "fox": 1, "gnu": 3}
    manifest = load(write_tree(tmp_path, counts))
    held_out = Counter(path.partition("/")[0] for path in paths(manifest, "test"))
    # round(0.3 n), at least one of two, and never all.
    assert held_out == {"cat": 3, "dog": 2, "emu": 1, "gnu": 1}
    assert sizes(manifest) == {"train": 14, "val": 0, "test": 7}
    assert manifest.listed
    assert manifest.notes[1:] == (
        "There was no test split: 30% of each class, 7 images in all, were held out with seed 0.",
        "1 class has one image only, which is kept for training: none is left to test.",
    )


def test_the_drawn_split_is_the_same_wherever_the_folder_lies(tmp_path):
    counts = {"cat": 10, "dog": 10}
    here, there = (load(write_tree(tmp_path / name, counts)) for name in "ab")
    assert paths(here, "test") == paths(there, "test")
    for name in counts:
        images = [f"{name}/{number:03d}.png" for number in range(10)]
        images.sort(key=lambda path: hashlib.sha256(f"0/{path}".encode()).digest())
        held_out = [path for path in paths(here, "test") if path.startswith(name)]
        assert held_out == sorted(images[:3])
    assert paths(here, "train") == sorted(paths(here, "train"))
    assert paths(load(tmp_path / "a", split_seed=1), "test") != paths(here, "test")
    assert sizes(load(tmp_path / "a", test_share=0.5))["test"] == 10


def test_a_share_of_0_holds_nothing_out(tmp_path):
    write_tree(tmp_path, {"train/cat": 6, "train/dog": 6, "val/cat": 2, "val/dog": 2})
    assert sizes(load(tmp_path, test_share=0)) == {"train": 12, "val": 4, "test": 0}


def test_an_image_more_moves_few_others(tmp_path):
    before = set(paths(load(write_tree(tmp_path, {"cat": 40, "dog": 40})), "test"))
    (tmp_path / "cat" / "new.png").write_bytes(png("blue"))
    after = set(paths(load(tmp_path), "test"))
    assert len(before ^ after) <= 2


@pytest.mark.parametrize("option", [{"test_share": 1}, {"test_share": -0.1}, {"split_seed": "a"}])
def test_options_out_of_range_are_refused(tmp_path, option):
    (name,) = option
    with pytest.raises(InputError, match=rf"options\.{name}="):
        load(write_tree(tmp_path, {"cat": 2, "dog": 2}), **option)


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "VAL"])
def test_split_folders_are_known_by_their_names(tmp_path, val):
    counts = {"Train/cat": 3, "Train/dog": 2, f"{val}/cat": 1, "test/dog": 2}
    manifest = load(write_tree(tmp_path, counts))
    assert sizes(manifest) == {"train": 5, "val": 1, "test": 2}
    assert manifest.classes == ("cat", "dog")
    assert not manifest.listed
    assert paths(manifest, "val") == [f"{val}/cat/000.png"]


def test_train_and_test_are_left_as_they_are(tmp_path):
    counts = {"train/cat": 3, "train/dog": 2, "test/cat": 1}
    assert sizes(load(write_tree(tmp_path, counts))) == {"train": 5, "val": 0, "test": 1}


def test_without_a_test_split_the_validation_split_serves_as_one(tmp_path):
    counts = {"train/cat": 3, "train/dog": 2, "valid/cat": 1}
    manifest = load(write_tree(tmp_path, counts))
    assert sizes(manifest) == {"train": 5, "val": 0, "test": 1}
    note = "There was no test split: the validation split, 1 image, serves as one."
    assert note in manifest.notes


def test_of_a_training_split_alone_a_part_is_held_out(tmp_path):
    manifest = load(write_tree(tmp_path, {"train/cat": 10, "train/dog": 10}))
    assert sizes(manifest) == {"train": 14, "val": 0, "test": 6}
    assert manifest.classes == ("cat", "dog")


def test_an_unlabelled_test_folder_is_left_out_and_said_so(tmp_path):
    manifest = load(write_tree(tmp_path, {"train/cat": 10, "train/dog": 10, "test": 5}))
    assert sizes(manifest) == {"train": 14, "val": 0, "test": 6}
    assert f"Left out of {tmp_path}: 5 images in no class folder, such as test/000.png." in (
        manifest.notes
    )


def test_classes_may_be_called_like_splits(tmp_path):
    manifest = load(write_tree(tmp_path, {"train": 3, "tram": 3, "bus/night": 3}))
    assert manifest.classes == ("bus", "train", "tram")


def test_a_data_set_that_tests_another_ones_heads_is_all_test(tmp_path):
    spec = DatasetSpec("sketches", "folder", str(tmp_path), target_of="pets")
    write_tree(tmp_path, {"cat": 3, "dog": 2})
    assert sizes(load_manifest(spec, tmp_path)) == {"train": 0, "val": 0, "test": 5}


def test_split_folders_without_class_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"split folders 'test', 'train', but no class folders"):
        load(write_tree(tmp_path, {"train": 3, "test": 2}))


def test_split_folders_without_a_training_split_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'test', 'val' and no folder 'train'"):
        load(write_tree(tmp_path, {"val/cat": 3, "test/cat": 2}))


def test_two_folders_for_one_split_are_refused(tmp_path):
    counts = {"train/cat": 3, "val/cat": 2, "valid/cat": 2}
    with pytest.raises(InputError, match=r"two folders for the val split, 'val' and 'valid'"):
        load(write_tree(tmp_path, counts))


def test_folders_inside_a_class_folder_belong_to_it(tmp_path):
    manifest = load(write_tree(tmp_path, {"cat": 1, "cat/old/black": 3, "dog": 2}))
    assert manifest.classes == ("cat", "dog")
    listed = paths(manifest, "train") + paths(manifest, "test")
    assert sum(path.startswith("cat/") for path in listed) == 4


def test_which_level_of_nested_folders_is_the_class_is_said(tmp_path):
    manifest = load(write_tree(tmp_path, {"cat": 3, "grp/intact": 2, "grp/broken/old": 2}))
    assert manifest.classes == ("cat", "grp")
    assert manifest.notes[1] == (
        "1 of these has no images of its own, but folders of images (such as grp/broken): all "
        "of them count for the class of the outer folder. If the inner folders are the classes, "
        "set options.class_level=2."
    )
    uneven = load(write_tree(tmp_path / "all", {"cat/images": 3, "dog/images": 3}))
    assert uneven.classes == ("cat", "dog")
    assert uneven.notes[1].startswith("These have no images of their own")
    flat = load(write_tree(tmp_path / "flat", {"cat": 3, "cat/more": 3, "dog": 3}))
    assert not any("class_level" in note for note in flat.notes)


def test_the_only_folder_around_everything_is_looked_through(tmp_path):
    root = write_tree(tmp_path / "pets", {"archive/data/cat": 4, "archive/data/dog": 4})
    (root / "cover.png").write_bytes(png())
    (root / "README").write_text("x")
    manifest = load(root)
    assert manifest.classes == ("cat", "dog")
    assert manifest.notes[0] == (
        f"All folders lie in {root}/archive, and so the classes are looked for in there."
    )
    assert f"Left out of {root}: 1 image in no class folder, such as cover.png." in manifest.notes
    inside = load(root / "archive" / "data")
    assert all(paths(manifest, split) == paths(inside, split) for split in ("train", "test"))
    split = write_tree(tmp_path / "split", {"a/train/cat": 2, "a/train/dog": 2, "a/test/cat": 1})
    assert sizes(load(split)) == {"train": 4, "val": 0, "test": 1}


@pytest.mark.parametrize(
    "counts",
    [
        {"mono/intact": 2, "mono/broken": 2, "poly/intact": 2, "poly/broken": 2},
        {
            f"{split}/{kind}": 2
            for split in ("train", "test")
            for kind in ("m/a", "m/b", "p/a", "p/b")
        },
        {"intact": 2, "broken": 2, "grp/intact": 2},
    ],
)
def test_nested_folders_of_which_either_level_could_be_the_classes_are_refused(tmp_path, counts):
    root = write_tree(tmp_path, counts)
    with pytest.raises(InputError, match=r"class_level=1, or .* with options\.class_level=2"):
        load(root)
    assert len(load(root, class_level=1).classes) == len(
        {folder.removeprefix("train/").removeprefix("test/").partition("/")[0] for folder in counts}
    )


def test_the_level_of_the_classes_may_be_chosen(tmp_path):
    counts = {"mono/intact": 2, "mono/broken": 2, "poly/intact": 2, "poly/broken": 2, "loose": 1}
    manifest = load(write_tree(tmp_path, counts), class_level=2)
    assert manifest.classes == ("broken", "intact")
    assert sum(sizes(manifest).values()) == 8
    assert manifest.notes[0] == f"2 classes, named after the folders in {tmp_path}/*."
    assert any("1 image in no class folder, such as loose/000.png" in n for n in manifest.notes)
    inner = ["intact", "broken"]
    assert load(tmp_path, class_level=2, classes=inner).classes == ("intact", "broken")
    with pytest.raises(InputError, match=r"options\.class_level=0: give 1"):
        load(tmp_path, class_level=0)


def test_what_is_no_image_or_in_no_class_is_counted(tmp_path):
    write_tree(tmp_path, {"cat": 3, "dog": 3, ".git": 1, "__MACOSX/cat": 2})
    (tmp_path / "cover.png").write_bytes(png())
    for name in ("notes.txt", "cat/Thumbs.db", "cat/labels.TXT", "dog/.hidden.png", "dog/README"):
        (tmp_path / name).write_text("x")
    manifest = load(tmp_path)
    assert sum(sizes(manifest).values()) == 6
    assert manifest.notes[2:] == (
        f"Left out of {tmp_path}: 1 image in no class folder, such as cover.png.",
        f"Left out of {tmp_path}: 4 files without the suffix of an image "
        "(1 .db, 2 .txt, 1 without one).",
    )


def test_listed_classes_give_the_labels_and_numbers_are_indices_into_them(tmp_path):
    manifest = load(write_tree(tmp_path / "a", {"dog": 2, "cat": 2}), classes=["dog", "cat"])
    assert manifest.classes == ("dog", "cat")
    numbered = write_tree(tmp_path / "b", {"0": 2, "1": 2, "10": 2})
    assert load(numbered).classes == ("0", "1", "10")
    assert any("list their names" in note for note in load(numbered).notes)
    names = [f"kind {number}" for number in range(11)]
    with pytest.raises(InputError, match="no training image of 'kind 2'"):
        load(numbered, classes=names)
    with pytest.raises(InputError, match=r"label 10.*names 3 classes"):
        load(numbered, classes=names[:3])
    with pytest.raises(InputError, match=r"class 'cat', which options\.classes.*mean 'cats'"):
        load(tmp_path / "a", classes=["cats", "dog"])


def test_an_empty_class_folder_is_refused(tmp_path):
    write_tree(tmp_path, {"cat": 3, "dog": 3, "emu": 0})
    with pytest.raises(InputError, match="no training image of 'emu'"):
        load(tmp_path)


def test_one_class_and_no_class_are_refused(tmp_path):
    with pytest.raises(InputError, match="one class 'cat'"):
        load(write_tree(tmp_path / "a", {"cat": 3}))
    with pytest.raises(InputError, match="no image in a class folder"):
        load(write_tree(tmp_path / "b", {".": 3}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in a class folder"):
        load(tmp_path / "empty")


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*gone.*data\.root"):
        load(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"no folder .*file"):
        load(tmp_path / "file")


@pytest.mark.parametrize(
    "names",
    [
        ("sea lion", "Sea_Lion"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
    ],
)
def test_two_folders_of_one_name_are_refused(tmp_path, names):
    write_tree(tmp_path, dict.fromkeys(names, 3))
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system keeps one name only")
    with pytest.raises(InputError, match="two classes of one name"):
        load(tmp_path)


def test_the_drawn_split_does_not_depend_on_how_a_system_spells_a_name(tmp_path):
    drawn = []
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ("café", "thé")]
        manifest = load(write_tree(tmp_path / form, dict.fromkeys(names, 20)))
        drawn.append([unicodedata.normalize("NFC", path) for path in paths(manifest, "test")])
    assert drawn[0] == drawn[1]


def test_names_in_any_script_are_read(tmp_path):
    counts = {"猫": 3, "ñandú": 3, "a%20b c?#[1]": 3}
    manifest = load(write_tree(tmp_path, counts))
    for split in ("train", "test"):
        table = manifest.split(split)
        for path, content in zip(
            table.column("path").to_pylist(),
            read_image_bytes(table, range(table.num_rows)),
            strict=True,
        ):
            assert content == (tmp_path / path).read_bytes()


def test_a_name_that_is_no_unicode_is_refused(tmp_path):
    write_tree(tmp_path, {"cat": 2, "dog": 2})
    try:
        Path(tmp_path / "cat" / "caf\udce9.png").write_bytes(png())
    except OSError:
        pytest.skip("this file system keeps no such name")
    with pytest.raises(InputError, match=r"not UTF-8, b'cat/caf\\xe9.png': rename it"):
        load(tmp_path)


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    write_tree(tmp_path / "elsewhere", {"dogs": 3})
    root = write_tree(tmp_path / "pets", {"cat": 3})
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "dogs" / "000.png")
    manifest = load(root)
    assert manifest.classes == ("cat", "dog")
    assert sum(sizes(manifest).values()) == 7


def test_thousands_of_classes_are_listed_at_once(tmp_path):
    for number in range(2_000):
        folder = tmp_path / f"class {number:05d}"
        folder.mkdir()
        (folder / "0.png").touch()
    start = time.monotonic()
    manifest = load(tmp_path)
    assert time.monotonic() - start < 5
    assert len(manifest.classes) == sizes(manifest)["train"] == 2_000


@pytest.mark.parametrize("prefix", ["file://", "file://localhost"])
def test_a_file_uri_is_a_local_folder(tmp_path, prefix):
    root = write_tree(tmp_path / "my pets", {"cat": 3, "dog": 3})
    manifest = load(prefix + str(root).replace(" ", "%20"))
    assert paths(manifest, "test") == paths(load(root), "test")
    assert manifest.split("test").column("file")[0].as_py().startswith(str(root))
