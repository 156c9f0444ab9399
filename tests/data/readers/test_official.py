"""The authors' own lists stand in for CoOp's split file, and what they leave open is drawn."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from safe_ray.compose import ConfigTree, load_dataset
from safe_ray.data.images import decode_image
from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.data.readers.official import (
    CALTECH101_IGNORED,
    CALTECH101_NAMES,
    EUROSAT_NAMES,
    KINDS,
    LISTING_SHARES,
    part,
)
from safe_ray.errors import InputError
from safe_ray.specs import DatasetSpec
from tests.data.official_tree import OFFICIAL, write_lines, write_setid

PUBLISHED = Path(__file__).parents[4] / "shared" / "splits"
PACKAGED = ConfigTree.of()
SPLITS = ("train", "val", "test")

# The classes, and how many images a class the train, val and test splits have of the small trees.
EXPECTED = {
    "caltech101": (("face", "airplane", "car_side"), (5, 2, 3)),
    "dtd": (("banded", "zigzagged"), (3, 2, 1)),
    "eurosat": (("Annual Crop Land", "Forest", "Sea or Lake"), (5, 2, 3)),
    "food101": (("apple_pie", "pad_thai"), (4, 1, 2)),
    "oxford_flowers": (("pink primrose", "hard-leaved pocket orchid"), (5, 2, 3)),
    "oxford_pets": (("abyssinian", "american_bulldog", "egyptian_mau"), (4, 1, 2)),
    "stanford_cars": (
        ("2000 AM General Hummer SUV", "2012 Audi A4 Sedan", "2012 Ram C/V Cargo Van Minivan"),
        (4, 1, 1),
    ),
    "sun397": (("abbey", "indoor apse", "bus_interior"), (4, 1, 2)),
    "ucf101": (("Apply_Eye_Makeup", "Handstand_Pushups"), (4, 1, 2)),
}
WRITTEN_DOWN = ("dtd", "fgvc_aircraft")


def spec_of(name: str) -> DatasetSpec:
    return load_dataset(PACKAGED, name).spec()


def load(root: Path, name: str):
    return load_manifest(spec_of(name), root)


def pairs(table) -> list[tuple[str, int]]:
    return list(
        zip(table.column("path").to_pylist(), table.column("label").to_pylist(), strict=True)
    )


def test_every_kind_has_a_tree_here_and_a_configuration():
    assert set(OFFICIAL) == set(KINDS)
    for name in KINDS:
        assert spec_of(name).options["official"] == name


@pytest.mark.parametrize("name", EXPECTED)
def test_the_lists_give_classes_and_splits(tmp_path, name):
    OFFICIAL[name](tmp_path)
    manifest = load(tmp_path, name)
    classes, sizes = EXPECTED[name]
    assert manifest.classes == classes
    for split, size in zip(SPLITS, sizes, strict=True):
        labels = manifest.split(split).column("label").to_pylist()
        assert Counter(labels) == dict.fromkeys(range(len(classes)), size)


@pytest.mark.parametrize("name", KINDS)
def test_every_image_of_the_lists_is_where_it_is_looked_for(tmp_path, name):
    OFFICIAL[name](tmp_path)
    for table in load(tmp_path, name).tables.values():
        for data in read_image_bytes(table, range(table.num_rows)):
            assert decode_image(data).size == (10, 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("caltech101", {0: "Faces/", 1: "airplanes/", 2: "car_side/"}),
        ("eurosat", {0: "AnnualCrop/", 1: "Forest/", 2: "SeaLake/"}),
        ("oxford_pets", {0: "Abyssinian_", 1: "american_bulldog_", 2: "Egyptian_Mau_"}),
        ("sun397", {0: "a/abbey/", 1: "a/apse/indoor/", 2: "b/bus_interior/"}),
        ("ucf101", {0: "Apply_Eye_Makeup/v_Apply", 1: "Handstand_Pushups/v_HandStandPushups_"}),
        ("dtd", {0: "banded/", 1: "zigzagged/"}),
    ],
)
def test_an_image_has_the_label_of_its_class(tmp_path, name, words):
    OFFICIAL[name](tmp_path)
    for table in load(tmp_path, name).tables.values():
        for path, label in pairs(table):
            assert path.startswith(words[label])


def test_the_aircraft_lists_are_the_split_of_the_field(tmp_path):
    OFFICIAL["fgvc_aircraft"](tmp_path)
    manifest = load(tmp_path, "fgvc_aircraft")
    assert manifest.classes == ("707-320", "Model B200", "F/A-18")
    assert pairs(manifest.split("train")) == [
        ("1025794.jpg", 1),
        ("1340192.jpg", 0),
        ("0056978.jpg", 2),
    ]
    assert pairs(manifest.split("val")) == [("0481847.jpg", 0)]
    assert pairs(manifest.split("test")) == [("1514522.jpg", 1), ("0747566.jpg", 2)]
    assert (manifest.listed, manifest.notes) == (False, ())


def test_cars_have_the_class_that_their_annotation_says(tmp_path):
    OFFICIAL["stanford_cars"](tmp_path)
    manifest = load(tmp_path, "stanford_cars")
    assert pairs(manifest.split("test")) == [
        ("cars_test/00001.jpg", 0),
        ("cars_test/00002.jpg", 1),
        ("cars_test/00003.jpg", 2),
    ]


def test_flowers_are_parted_by_their_authors_where_the_lists_are_there(tmp_path):
    OFFICIAL["oxford_flowers"](tmp_path)
    write_setid(tmp_path, train=[11, 1], val=[2, 12], test=[3, 20])
    manifest = load(tmp_path, "oxford_flowers")
    assert pairs(manifest.split("train")) == [("image_00011.jpg", 0), ("image_00001.jpg", 1)]
    assert pairs(manifest.split("val")) == [("image_00002.jpg", 1), ("image_00012.jpg", 0)]
    assert pairs(manifest.split("test")) == [("image_00003.jpg", 1), ("image_00020.jpg", 0)]
    assert not manifest.listed


@pytest.mark.parametrize("name", EXPECTED)
def test_what_was_drawn_and_what_was_read_is_said(tmp_path, name):
    OFFICIAL[name](tmp_path)
    manifest = load(tmp_path, name)
    assert manifest.listed == (name not in WRITTEN_DOWN)
    first, *drawn = manifest.notes
    assert spec_of(name).options["split"] in first
    assert len(drawn) == int(manifest.listed)
    assert all(" were drawn " in note for note in drawn)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_split_file_goes_before_the_lists(tmp_path, name):
    OFFICIAL[name](tmp_path)
    rows = [["a.jpg", 0, "this"], ["b.jpg", 1, "that"]]
    spec = spec_of(name)
    (tmp_path / spec.path / spec.options["split"]).write_text(json.dumps({"train": rows}))
    manifest = load(tmp_path, name)
    assert manifest.classes == ("this", "that")
    assert (manifest.listed, manifest.notes) == (False, ())


@pytest.mark.parametrize("name", ["caltech101", "food101", "oxford_flowers", "stanford_cars"])
def test_two_machines_draw_the_same_split(tmp_path, name):
    for machine in ("here", "there"):
        OFFICIAL[name](tmp_path / machine)
    here, there = (load(tmp_path / machine, name) for machine in ("here", "there"))
    for split in SPLITS:
        assert pairs(here.split(split)) == pairs(there.split(split))


def test_the_drawing_does_not_depend_on_the_order_or_on_the_other_classes():
    samples = [
        (f"{name}/{n:03d}.jpg", label) for label, name in enumerate("abc") for n in range(20)
    ]
    parts = part(samples, "abc", (0.5, 0.2))
    assert part(list(reversed(samples)), "abc", (0.5, 0.2)) == parts
    without_a = [(path, label - 1) for path, label in samples if label]
    for fewer, more in zip(part(without_a, "bc", (0.5, 0.2)), parts, strict=True):
        assert fewer == [(path, label - 1) for path, label in more if label]
    assert sorted(sample for found in parts for sample in found) == sorted(samples)
    # A change of it would silently give everybody another split.
    assert [path for path, label in parts[1] if label == 0] == [
        "a/002.jpg",
        "a/006.jpg",
        "a/014.jpg",
        "a/016.jpg",
    ]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.files])
def test_what_is_missing_is_named_with_the_split_file_the_lists_and_the_source(tmp_path, name):
    OFFICIAL[name](tmp_path)
    spec = spec_of(name)
    gone = KINDS[name].files[-1]
    (tmp_path / spec.path / gone).unlink()
    with pytest.raises(InputError) as raised:
        load_manifest(spec, tmp_path)
    message = str(raised.value)
    assert f"missing: {gone}" in message
    assert all(word in message for word in (*KINDS[name].files, "https://", "data.root"))
    assert spec.options.get("split", "") in message


def test_a_missing_folder_of_images_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*caltech-101;.*101_ObjectCategories\.tar"):
        load(tmp_path, "caltech101")


def test_an_unknown_kind_of_lists_names_the_nearest():
    spec = DatasetSpec("mine", "coop", "mine", options={"official": "oxford_pet"})
    with pytest.raises(InputError, match=r"'oxford_pet'.*mean 'oxford_pets'"):
        load_manifest(spec, Path("/nowhere"))


@pytest.mark.parametrize(
    ("name", "file", "lines", "message"),
    [
        (
            "sun397",
            "Testing_01.txt",
            ["/z/zoo/sun_1.jpg"],
            r"Testing_01\.txt has the class 'z/zoo'",
        ),
        ("ucf101", "ucfTrainTestlist/testlist01.txt", ["Fly/a.avi"], "has the class 'Fly'"),
        ("fgvc_aircraft", "images_variant_val.txt", ["1 747"], "has the class '747'"),
        ("oxford_pets", "annotations/test.txt", ["pug_1 x"], "'pug_1 x', which has no class numb"),
        ("oxford_pets", "annotations/test.txt", ["pug_1 9 1 1"], "leaves out some of the class"),
        ("stanford_cars", "devkit/cars_meta.mat", ["<html>"], r"cars_meta\.mat is no MATLAB file"),
        ("oxford_flowers", "cat_to_name.json", ["{}"], "does not name the classes 1 to 2"),
        ("oxford_flowers", "cat_to_name.json", ["<html>"], "not readable JSON"),
    ],
)
def test_a_damaged_list_is_refused_with_the_place(tmp_path, name, file, lines, message):
    OFFICIAL[name](tmp_path)
    write_lines(tmp_path / spec_of(name).path / file, lines)
    with pytest.raises(InputError, match=message):
        load(tmp_path, name)


def test_cars_without_the_labels_of_their_test_images_are_refused(tmp_path):
    OFFICIAL["stanford_cars"](tmp_path)
    unlabelled = np.array([("00001.jpg",)], dtype=[("fname", object)])
    savemat(tmp_path / "stanford_cars/cars_test_annos_withlabels.mat", {"annotations": unlabelled})
    with pytest.raises(InputError, match="does not say the class of each image"):
        load(tmp_path, "stanford_cars")


def published(name: str) -> dict[str, list[tuple[str, int, str]]]:
    file = PUBLISHED / f"split_zhou_{name}.json"
    if not file.is_file():
        pytest.skip(f"{file.name} is not kept beside this checkout")
    return json.loads(file.read_text())


def sizes(manifest) -> list[int]:
    return [manifest.split(split).num_rows for split in SPLITS]


def test_pets_from_their_lists_have_the_classes_and_sizes_of_the_published_split(tmp_path):
    split = published("OxfordPets")
    folder = tmp_path / "oxford_pets"
    (folder / "images").mkdir(parents=True)
    for name, rows in (("trainval", split["train"] + split["val"]), ("test", split["test"])):
        lines = [f"{path.removesuffix('.jpg')} {label + 1} 1 1" for path, label, _ in rows]
        write_lines(folder / f"annotations/{name}.txt", lines)
    ours = load(tmp_path, "oxford_pets")
    shutil.copy(PUBLISHED / "split_zhou_OxfordPets.json", folder)
    theirs = load(tmp_path, "oxford_pets")
    assert ours.classes == theirs.classes
    assert sizes(ours) == sizes(theirs) == [2944, 736, 3669]


def test_ucf101_from_its_lists_has_the_images_and_sizes_of_the_published_split(tmp_path):
    split = published("UCF101")
    folder = tmp_path / "ucf101"
    (folder / "UCF-101-midframes").mkdir(parents=True)
    lists = {"trainlist01": split["train"] + split["val"], "testlist01": split["test"]}
    names = {label: name for rows in lists.values() for _, label, name in rows}
    actions = {label: name.replace("_", "") for label, name in names.items()}
    write_lines(
        folder / "ucfTrainTestlist/classInd.txt",
        [f"{label + 1} {actions[label]}" for label in sorted(actions)],
    )
    for name, rows in lists.items():
        videos = [
            f"{actions[label]}/{path.partition('/')[2].removesuffix('.jpg')}.avi"
            for path, label, _ in rows
        ]
        write_lines(folder / f"ucfTrainTestlist/{name}.txt", videos)
    ours = load(tmp_path, "ucf101")
    shutil.copy(PUBLISHED / "split_zhou_UCF101.json", folder)
    theirs = load(tmp_path, "ucf101")
    assert ours.classes == theirs.classes
    assert sizes(ours) == sizes(theirs) == [7639, 1898, 3783]
    assert pairs(ours.split("test")) == pairs(theirs.split("test"))


@pytest.mark.parametrize(
    ("name", "ignored", "renamed"),
    [
        ("Caltech101", CALTECH101_IGNORED, CALTECH101_NAMES),
        ("EuroSAT", (), EUROSAT_NAMES),
        ("DescribableTextures", (), {}),
    ],
)
def test_listings_have_the_classes_and_sizes_of_the_published_split(name, ignored, renamed):
    split = published(name)
    rows = [row for found in split.values() for row in found]
    folders = sorted({path.partition("/")[0] for path, *_ in rows})
    assert not set(folders) & set(ignored)
    classes = [renamed.get(folder, folder) for folder in folders]
    assert {label: name for _, label, name in rows} == dict(enumerate(classes))
    parts = part([(path, label) for path, label, _ in rows], classes, LISTING_SHARES)
    assert [len(found) for found in parts] == [len(split[part_name]) for part_name in SPLITS]
