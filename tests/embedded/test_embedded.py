"""The backbone and the data sets in the package are what their cards say they are."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from pipelines.pretrain.artwork import HELD_OUT, PRETRAIN
from pipelines.pretrain.attribution import attribution

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "safe_ray" / "embedded"
MODEL = "pictogram-rn-128"
DATASETS = sorted(path.stem for path in EMBEDDED.glob("*.parquet"))
COARSE = ("emoji_kinds", "icon_kinds", "icon_themes")
LICENCES = {"Apache-2.0", "MIT", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0"}


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return pq.read_table(EMBEDDED / f"{name}.parquet").to_pylist()


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    open_clip.add_model_config(EMBEDDED / f"{MODEL}.json")
    model, _, transform = open_clip.create_model_and_transforms(
        MODEL, pretrained=str(EMBEDDED / f"{MODEL}.safetensors")
    )
    return model.float().eval(), transform


def test_the_package_stays_small():
    assert (EMBEDDED / f"{MODEL}.safetensors").stat().st_size <= 12_000_000
    assert sum(path.stat().st_size for path in EMBEDDED.glob("*.parquet")) <= 15_000_000


def test_there_are_at_least_five_data_sets_and_each_has_its_configuration():
    assert len(DATASETS) >= 5
    for name in DATASETS:
        text = (ROOT / "conf" / "dataset" / f"{name}.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(text)["path"] == f"pkg://safe_ray/embedded/{name}.parquet"


def test_the_weights_are_half_precision_and_finite():
    with safe_open(EMBEDDED / f"{MODEL}.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in floats)


def test_plain_open_clip_loads_the_model(clip):
    model, transform = clip
    config = json.loads((EMBEDDED / f"{MODEL}.json").read_text(encoding="utf-8"))
    size = config["vision_cfg"]["image_size"]
    image = transform(Image.new("RGB", (300, 200), "white"))
    assert image.shape == (3, size, size)
    with torch.no_grad():
        assert model.encode_image(image[None]).shape == (1, config["embed_dim"])


@pytest.mark.parametrize("name", DATASETS)
class TestDataset:
    def test_images_are_rgb_at_the_model_size(self, name):
        for row in rows(name):
            image = Image.open(io.BytesIO(row["image"]))
            assert (image.mode, image.size) == ("RGB", (128, 128))

    def test_no_drawing_is_in_two_places(self, name):
        paths = Counter(row["path"] for row in rows(name))
        pixels = Counter(
            hashlib.sha256(Image.open(io.BytesIO(row["image"])).tobytes()).digest()
            for row in rows(name)
        )
        assert max(paths.values()) == 1
        assert max(pixels.values()) == 1

    def test_every_class_is_in_every_split_and_the_test_is_large_enough(self, name):
        split = {key: Counter() for key in ("train", "val", "test")}
        for row in rows(name):
            split[row["split"]][row["class_name"]] += 1
        assert set(split["train"]) == set(split["val"]) == set(split["test"])
        assert split["test"].total() >= 100

    def test_class_names_differ_by_more_than_case_and_spelling(self, name):
        names = {row["class_name"] for row in rows(name)}
        assert len({n.lower().replace("_", " ").strip() for n in names}) == len(names)

    def test_rows_are_in_their_fixed_order(self, name):
        keys = [(row["split"], row["class_name"], row["path"]) for row in rows(name)]
        assert keys == sorted(keys)

    def test_licences_allow_redistribution_and_every_style_is_attributed(self, name):
        attribution = (EMBEDDED / "ATTRIBUTION.md").read_text(encoding="utf-8")
        assert {row["licence"] for row in rows(name)} <= LICENCES
        for style in {row["style"] for row in rows(name)}:
            assert f"| {HELD_OUT[style].package(style)} |" in attribution
            assert HELD_OUT[style].author in attribution

    def test_pre_training_never_saw_the_style_nor_its_family(self, name):
        styles = {row["style"] for row in rows(name)}
        assert styles.isdisjoint(PRETRAIN)
        families = {HELD_OUT[style].family for style in styles}
        assert families.isdisjoint(about.family for about in PRETRAIN.values())

    def test_zero_shot_is_neither_hopeless_nor_solved(self, name, clip):
        model, transform = clip
        tokenize = open_clip.get_tokenizer(MODEL)
        path = ROOT / "conf" / "dataset" / f"{name}.yaml"
        templates = yaml.safe_load(path.read_text(encoding="utf-8"))["templates"]
        classes = sorted({row["class_name"] for row in rows(name)})
        test = [row for row in rows(name) if row["split"] == "test"]
        images = torch.stack([transform(Image.open(io.BytesIO(row["image"]))) for row in test])
        with torch.no_grad():
            prompts = [
                model.encode_text(tokenize([template.format(c) for c in classes]), normalize=True)
                for template in templates
            ]
            classifier = torch.nn.functional.normalize(torch.stack(prompts).mean(0), dim=-1)
            found = torch.cat([model.encode_image(part) for part in images.split(64)])
        guess = (found @ classifier.T).argmax(1).tolist()
        right = sum(classes[g] == row["class_name"] for g, row in zip(guess, test, strict=True))
        assert 0.15 <= right / len(test) <= 0.75


@pytest.mark.parametrize("name", COARSE)
def test_coarse_data_sets_have_sixteen_shots_and_four_validation_images(name):
    for split, least in (("train", 16), ("val", 4)):
        count = Counter(row["class_name"] for row in rows(name) if row["split"] == split)
        assert min(count.values()) >= least


def test_the_attribution_is_the_one_the_pipeline_writes():
    written = (EMBEDDED / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert written == attribution()
