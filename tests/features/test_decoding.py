"""Decoding gives the same pixels wherever an image lies, and refuses one that changed."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.errors import InputError
from safe_ray.features.decoding import decode_views
from safe_ray.features.inventory import Inventory, take_inventory
from safe_ray.features.rows import ExtractionRequest, chunk_tables
from safe_ray.specs import BackboneSpec
from tests.conftest import SHAPES, draw_shape
from tests.features.test_extract import write_images


@pytest.fixture(scope="module")
def backbone(tiny_backbone: BackboneSpec) -> Backbone:
    torch.set_num_threads(1)
    return load_backbone(tiny_backbone, parts=("trunk",))


def as_chunk(inventory: Inventory) -> pa.Table:
    (chunk,) = chunk_tables(
        [ExtractionRequest.of(inventory)],
        [(sample, 0, row, [0]) for row, sample in enumerate(inventory.samples)],
        inventory.table.num_rows,
    )
    return chunk


def test_parts_of_a_file_and_files_of_any_file_system_are_decoded_as_files_are(
    backbone: Backbone, tmp_path: Path
) -> None:
    table = write_images(tmp_path / "images", 4)
    contents = [Path(file).read_bytes() for file in table["file"].to_pylist()]
    whole = tmp_path / "all.bin"
    whole.write_bytes(b"".join(contents))
    lengths = [len(content) for content in contents]
    offsets = [sum(lengths[:row]) for row in range(4)]
    parts = pa.table(
        {"path": table["path"], "file": [str(whole)] * 4, "offset": offsets, "length": lengths}
    )
    memory = fsspec.filesystem("memory")
    uris = [f"memory://images/{name}" for name in table["path"].to_pylist()]
    memory.pipe(dict(zip(uris, contents, strict=True)))
    remote = pa.table({"path": table["path"], "file": uris})
    recipe = backbone.preprocessing.to_json()
    expected, *others = (
        decode_views(as_chunk(take_inventory(each, tmp_path / "cache.arrow")), recipe)
        for each in (table, parts, remote)
    )
    for other in others:
        assert np.array_equal(other["sample"], expected["sample"])
        assert np.array_equal(other["pixels"], expected["pixels"])


def test_an_image_that_changed_since_the_inventory_is_refused(
    backbone: Backbone, tmp_path: Path
) -> None:
    table = write_images(tmp_path / "images", 4)
    rows = as_chunk(take_inventory(table, tmp_path / "cache.arrow"))
    recipe = backbone.preprocessing.to_json()
    assert decode_views(rows, recipe)["pixels"].shape == (4, 3, 64, 64)
    file = Path(table["file"][3].as_py())
    file.write_bytes(draw_shape(next(iter(SHAPES)), 99))
    with pytest.raises(InputError, match=f"{file} changed"):
        decode_views(rows, recipe)
    file.unlink()
    with pytest.raises(InputError, match=f"{file} cannot be read on the node"):
        decode_views(rows, recipe)
