"""The field's data sets are configured as the field reads them, and draw the field's episodes."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from itertools import product
from pathlib import Path

import pytest

from safe_ray.compose import ConfigTree, load_dataset
from safe_ray.data.episodes import draw_episode
from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.data.prompts import check_templates, render_prompts
from tests.data.coop_tree import png

PUBLISHED = Path(__file__).parents[3] / "shared" / "splits"
DIGESTS = Path(__file__).with_name("episode_digests.tsv")
PACKAGED = ConfigTree.of()
SHOTS = (1, 2, 4, 8, 16)
SEEDS = (1, 2, 3)

# Where CoOp's instructions put the images and the split file, below the folder of all data sets.
LAYOUT = {
    "caltech101": ("caltech-101/101_ObjectCategories", "caltech-101/split_zhou_Caltech101.json"),
    "dtd": ("dtd/images", "dtd/split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat/2750", "eurosat/split_zhou_EuroSAT.json"),
    "food101": ("food-101/images", "food-101/split_zhou_Food101.json"),
    "oxford_flowers": ("oxford_flowers/jpg", "oxford_flowers/split_zhou_OxfordFlowers.json"),
    "oxford_pets": ("oxford_pets/images", "oxford_pets/split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "stanford_cars/split_zhou_StanfordCars.json"),
    "sun397": ("sun397/SUN397", "sun397/split_zhou_SUN397.json"),
    "ucf101": ("ucf101/UCF-101-midframes", "ucf101/split_zhou_UCF101.json"),
}

# Classes and images a split, as CoOp's paper lists them, and the prompt of the first class.
CONTENT = {
    "caltech101": (100, (4128, 1649, 2465), "a photo of a face."),
    "dtd": (47, (2820, 1128, 1692), "banded texture."),
    "eurosat": (10, (13500, 5400, 8100), "a centered satellite photo of Annual Crop Land."),
    "oxford_flowers": (102, (4093, 1633, 2463), "a photo of a pink primrose, a type of flower."),
    "oxford_pets": (37, (2944, 736, 3669), "a photo of a abyssinian, a type of pet."),
    "stanford_cars": (196, (6509, 1635, 8041), "a photo of a 2000 AM General Hummer SUV."),
    "ucf101": (101, (7639, 1898, 3783), "a photo of a person doing Apply Eye Makeup."),
}

# The one prompt that CoOp's zero-shot CLIP has for each data set.
TEMPLATES = {
    **dict.fromkeys(("imagenet", "caltech101", "stanford_cars", "sun397"), "a photo of a {}."),
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "food101": "a photo of {}, a type of food.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "ucf101": "a photo of a person doing {}.",
}
TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


def configured(name):
    return load_dataset(PACKAGED, name).spec()


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_has_the_fields_prompt_an_ensemble_that_keeps_it_and_a_source(name):
    spec = configured(name)
    assert (spec.name, spec.templates, spec.target_of) == (name, (TEMPLATES[name],), None)
    assert "https://" in spec.source
    if name == "imagenet":
        assert spec.ensemble == "openai"
    else:
        assert len(check_templates(spec.ensemble, name)) >= 4
        assert TEMPLATES[name] in spec.ensemble


@pytest.mark.parametrize("name", TARGETS)
def test_targets_test_the_heads_of_imagenet_with_its_prompts(name):
    target, source = configured(name), configured("imagenet")
    assert (target.name, target.target_of) == (name, "imagenet")
    assert (target.templates, target.ensemble) == (source.templates, source.ensemble)
    assert target.options["test_only"] is True
    assert "https://" in target.source


@pytest.mark.parametrize("name", LAYOUT)
def test_images_and_split_file_are_found_where_coop_puts_them(tmp_path, name):
    images, split_file = (tmp_path / part for part in LAYOUT[name])
    split = {
        "train": [["one/a.jpg", 0, "first_kind"], ["b.jpg", 1, "second_kind"]],
        "val": [],
        "test": [],
    }
    for number, (path, *_) in enumerate(split["train"]):
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        (images / path).write_bytes(png("red" if number else "blue"))
    split_file.write_text(json.dumps(split))

    spec = configured(name)
    manifest = load_manifest(spec, tmp_path)
    assert read_image_bytes(manifest.split("train"), [0, 1]) == [png("blue"), png("red")]
    assert manifest.templates == spec.templates


def published(name):
    file = PUBLISHED / Path(LAYOUT[name][1]).name
    if not file.is_file():
        pytest.skip(f"{file.name} is not kept beside this checkout")
    return file


@pytest.fixture(scope="module")
def published_manifest(request, tmp_path_factory):
    """Return the data set of a published split; its images are not needed."""
    name, root = request.param, tmp_path_factory.mktemp("published")
    images, split_file = (root / part for part in LAYOUT[name])
    file = published(name)
    images.mkdir(parents=True)
    shutil.copy(file, split_file)
    return load_manifest(configured(name), root)


@pytest.mark.parametrize("published_manifest", CONTENT, indirect=True)
def test_the_published_split_has_the_classes_and_images_of_the_paper(published_manifest):
    manifest = published_manifest
    classes, sizes, prompt = CONTENT[manifest.name]
    assert len(manifest.classes) == classes
    assert tuple(manifest.split(split).num_rows for split in ("train", "val", "test")) == sizes
    assert (manifest.listed, manifest.notes) == (False, ())
    prompts = render_prompts(manifest.classes, manifest.templates)
    assert prompts[0] == [prompt]
    assert not any("_" in prompt for row in prompts for prompt in row)


def committed(name):
    """Return the digests of the committed table: train and validation by shots and seed."""
    with DIGESTS.open(newline="") as file:
        return {
            (int(row["shots"]), int(row["seed"])): (row["train_digest"], row["validation_digest"])
            for row in csv.DictReader(file, delimiter="\t")
            if row["dataset"] == name
        }


def restated(split, shots, seed):
    """CoOp's drawing in a few lines: one seed, then the shots, then the validation samples."""
    random.seed(seed)
    digests = []
    for rows, count in ((split["train"], shots), (split["val"], min(shots, 4))):
        of_label = {}
        for path, label, _ in rows:
            of_label.setdefault(label, []).append(f"{path}\t{label}")
        lines = []
        for found in of_label.values():
            lines += random.sample(found, count) if len(found) >= count else found
        digests.append(hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16])
    return tuple(digests)


def test_the_table_of_digests_is_complete():
    for name in CONTENT:
        assert list(committed(name)) == list(product(SHOTS, SEEDS))


@pytest.mark.parametrize("published_manifest", CONTENT, indirect=True)
def test_our_episodes_of_the_published_splits_are_those_of_the_table(published_manifest):
    for (shots, seed), digests in committed(published_manifest.name).items():
        episode = draw_episode(published_manifest, shots, seed)
        assert (episode.train_digest, episode.validation_digest) == digests


@pytest.mark.parametrize("name", CONTENT)
def test_coops_drawing_stated_again_gives_the_table(name):
    split = json.loads(published(name).read_text())
    state = random.getstate()
    try:
        for (shots, seed), digests in committed(name).items():
            assert restated(split, shots, seed) == digests
    finally:
        random.setstate(state)
