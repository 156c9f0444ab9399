"""The trunk over pixels: what it returns fits the store, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.errors import InputError
from safe_ray.features.extract import open_store
from safe_ray.features.trunk import dense_maps
from safe_ray.specs import BackboneSpec


@pytest.fixture(scope="module")
def backbone(tiny_backbone: BackboneSpec) -> Backbone:
    torch.set_num_threads(1)
    return load_backbone(tiny_backbone, parts=("trunk",))


def test_values_too_large_for_float16_are_refused_by_name(
    backbone: Backbone, tmp_path: Path
) -> None:
    loud = load_backbone(backbone.spec, parts=("trunk",))
    for parameter in loud.trunk.parameters():
        parameter.mul_(50)
    maps = dense_maps(loud, np.full((3, 3, 64, 64), 128, np.uint8), "fp32", 2, "cpu")
    assert maps.shape == (3, 4, 512)
    store = open_store(loud, tmp_path, "fp32")
    with pytest.raises(InputError, match="view 7 of sample aa holds a value that is not a finite"):
        store.write_part(["aa", "bb", "cc"], [7, 0, 0], maps)
