"""Readers of what people write by hand: configuration, class names, architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safe_ray.backbones.files import read_model_config
from safe_ray.comparison.references import load_reference
from safe_ray.compose import ConfigTree, load_config, load_dataset, load_method, packaged_tree
from safe_ray.data.readers.webdataset import expand_braces
from safe_ray.methods.base import make_method
from safe_ray.own_data import read_classes
from safe_ray.specs import BackboneSpec
from tests.fuzz.reader import Fold, Reader

CONF = packaged_tree()


def _copy(*names: str) -> Fold:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CONF / name, folder / name)

    return make


def _tree(folder: Path) -> ConfigTree:
    return ConfigTree((folder, CONF))


def _read_dataset(folder: Path) -> object:
    dataset = load_dataset(_tree(folder), "food101")
    expand_braces(dataset.path)
    return dataset.spec()


def _read_method(folder: Path) -> object:
    method = load_method(_tree(folder), "safe")
    return make_method(method.module, method.options)


def _read_tree(folder: Path) -> object:
    return load_config(["sweep=it", f"storage={folder}"], folder)


def _make_classes(folder: Path) -> None:
    (folder / "a.txt").write_text("cat\ndog\n")
    (folder / "b.json").write_text('["cat", "dog"]')
    (folder / "c.yaml").write_text("0: cat\n1: dog\n")


def _read_classes(folder: Path) -> object:
    return [read_classes(str(folder / name)) for name in ("a.txt", "b.json", "c.yaml")]


def _make_model(folder: Path) -> None:
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny.json").write_text(json.dumps(config))


def _read_model(folder: Path) -> object:
    return read_model_config(BackboneSpec("tiny", "tiny"), folder / "tiny.json")


READERS = (
    Reader("data set YAML", _copy("dataset/food101.yaml"), _read_dataset, own=False, share=6),
    Reader("method YAML", _copy("method/safe.yaml"), _read_method, own=False, share=6),
    Reader(
        "configuration",
        _copy("tune.yaml", "search/default.yaml", "tasks/embedded.yaml", "backbone/pictogram.yaml"),
        _read_tree,
        own=False,
        share=1,
    ),
    Reader(
        "published YAML",
        _copy("reference/rn50.yaml"),
        lambda folder: load_reference("rn50", folder),
        own=False,
        share=2,
    ),
    Reader("classes", _make_classes, _read_classes, own=False, share=4),
    Reader("model JSON", _make_model, _read_model, own=False, share=2),
)
