"""The data sets of `conf/dataset` that CoOp published lie where CoOp's instructions put them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from safe_ray.compose import packaged_tree
from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.data.prompts import render_prompts
from safe_ray.specs import DatasetSpec
from tests.data.coop_tree import png

PUBLISHED = Path(__file__).parents[3] / "shared" / "splits"

# Where CoOp's instructions put the images and the split file, below the folder of all data sets.
LAYOUT = {
    "caltech101": ("caltech-101/101_ObjectCategories", "caltech-101/split_zhou_Caltech101.json"),
    "dtd": ("dtd/images", "dtd/split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat/2750", "eurosat/split_zhou_EuroSAT.json"),
    "oxford_flowers": ("oxford_flowers/jpg", "oxford_flowers/split_zhou_OxfordFlowers.json"),
    "oxford_pets": ("oxford_pets/images", "oxford_pets/split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "stanford_cars/split_zhou_StanfordCars.json"),
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


def configured(name):
    content = yaml.safe_load((packaged_tree() / "dataset" / f"{name}.yaml").read_text())
    return DatasetSpec(**{**content, "templates": tuple(content["templates"])})


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
    assert spec.name == name
    manifest = load_manifest(spec, tmp_path)
    assert read_image_bytes(manifest.split("train"), [0, 1]) == [png("blue"), png("red")]
    assert manifest.templates == spec.templates
    assert len(spec.templates) == 1


@pytest.mark.parametrize("name", CONTENT)
def test_the_published_split_has_the_classes_and_images_of_the_paper(tmp_path, name):
    images, split_file = (tmp_path / part for part in LAYOUT[name])
    published = PUBLISHED / split_file.name
    if not published.is_file():
        pytest.skip(f"{published.name} is not kept beside this checkout")
    images.mkdir(parents=True)
    shutil.copy(published, split_file)

    classes, sizes, prompt = CONTENT[name]
    manifest = load_manifest(configured(name), tmp_path)
    assert len(manifest.classes) == classes
    assert tuple(manifest.split(split).num_rows for split in ("train", "val", "test")) == sizes
    prompts = render_prompts(manifest.classes, manifest.templates)
    assert prompts[0] == [prompt]
    assert not any("_" in prompt for row in prompts for prompt in row)
