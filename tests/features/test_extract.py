"""Extraction fills the store with what the trunk makes of each view, once, whatever happens."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.data.images import decode_image
from safe_ray.data.views import make_view, normalise
from safe_ray.errors import InputError
from safe_ray.features.extract import (
    ExtractionOptions,
    ExtractionRequest,
    ExtractionSummary,
    extract,
    open_store,
)
from safe_ray.features.inventory import Inventory, take_inventory
from safe_ray.specs import BackboneSpec
from tests.conftest import SHAPES, draw_shape

COUNT = 20
VIEWS = (0, 1, 2)
OPTIONS = ExtractionOptions(batch_size=8, rows_per_file=16)


def write_images(folder: Path, count: int = COUNT) -> pa.Table:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(SHAPES)
    files = []
    for number in range(count):
        file = folder / f"{number:03d}.png"
        file.write_bytes(draw_shape(names[number % len(names)], number))
        files.append(file)
    return pa.table({"path": [file.name for file in files], "file": [str(file) for file in files]})


def inline(table: pa.Table) -> pa.Table:
    contents = [Path(file).read_bytes() for file in table["file"].to_pylist()]
    return table.drop_columns(["file"]).append_column(
        "image", pa.array(contents, pa.large_binary())
    )


def reference(backbone: Backbone, table: pa.Table, samples: list[str]) -> np.ndarray:
    """The maps of all images and views, one image at a time: `[n, views, L, C]`."""
    rows = []
    for file, sample in zip(table["file"].to_pylist(), samples, strict=True):
        image = decode_image(Path(file).read_bytes())
        pixels = torch.stack(
            [make_view(image, backbone.preprocessing, sample, view) for view in VIEWS]
        )
        with torch.inference_mode():
            rows.append(backbone.trunk(normalise(pixels, backbone.preprocessing)))
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def backbone(tiny_backbone: BackboneSpec) -> Backbone:
    torch.set_num_threads(1)
    return load_backbone(tiny_backbone, parts=("trunk",))


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    folder = tmp_path_factory.mktemp("images")
    return take_inventory(write_images(folder / "images"), folder / "cache.arrow")


def run(
    inventory: Inventory,
    spec: BackboneSpec,
    root: Path,
    views: tuple[int, ...] = VIEWS,
    options: ExtractionOptions = OPTIONS,
    **others: object,
) -> ExtractionSummary:
    return extract([ExtractionRequest.of(inventory)], views, spec, root, options, **others)


@pytest.fixture(scope="module")
def filled(
    ray_cluster: None,
    tiny_backbone: BackboneSpec,
    inventory: Inventory,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, ExtractionSummary, list[tuple[int, int, float | None]]]:
    root = tmp_path_factory.mktemp("filled") / "store"
    seen: list[tuple[int, int, float | None]] = []
    summary = run(inventory, tiny_backbone, root, progress=lambda *at: seen.append(at))
    return root, summary, seen


def test_the_store_holds_what_the_trunk_makes_of_each_view(
    filled, backbone: Backbone, inventory: Inventory
) -> None:
    root, summary, _ = filled
    assert (summary.asked, summary.reused, summary.extracted) == (60, 0, 60)
    assert summary.precision == "fp32"
    assert summary.images_per_second > 0
    stored = open_store(backbone, root, "fp32").read(inventory.samples, VIEWS)
    expected = reference(backbone, inventory.table, inventory.samples)
    np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=1e-3, atol=1e-5)


def test_parts_are_of_the_size_asked_for(filled) -> None:
    parts = list(filled[1].folder.glob("part-*.arrow"))
    # 60 rows in parts of 16.
    assert len(parts) == 4


def test_progress_counts_rows_up_to_the_total(filled) -> None:
    seen = filled[2]
    assert seen[0] == (0, 60, None)
    assert seen[-1][:2] == (60, 60)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)


def test_the_second_run_extracts_nothing_and_needs_no_ray(
    filled, tiny_backbone: BackboneSpec, inventory: Inventory
) -> None:
    start = time.monotonic()
    summary = run(inventory, tiny_backbone, filled[0])
    assert (summary.asked, summary.reused, summary.extracted) == (60, 60, 0)
    assert summary.images_per_second == 0
    assert time.monotonic() - start < 5


def test_only_what_is_missing_is_extracted_whatever_its_source(
    filled, tiny_backbone: BackboneSpec, backbone: Backbone, tmp_path: Path, inventory: Inventory
) -> None:
    # The same images inside a table, two of the views asked for there already, each image twice.
    root = tmp_path / "store"
    shutil.copytree(filled[0], root)
    again = take_inventory(inline(inventory.table), tmp_path / "cache.arrow")
    requests = [ExtractionRequest.of(again), ExtractionRequest.of(inventory, (0,))]
    summary = extract(requests, (3, 0, 1), tiny_backbone, root, OPTIONS, backbone=backbone)
    assert (summary.asked, summary.reused, summary.extracted) == (60, 40, 20)
    store = open_store(backbone, root, "fp32")
    assert store.missing(inventory.samples, (0, 1, 2, 3)) == []


def test_maps_do_not_depend_on_how_they_were_batched(
    filled, tiny_backbone: BackboneSpec, backbone: Backbone, tmp_path: Path, inventory: Inventory
) -> None:
    reversed_rows = pa.array(range(COUNT - 1, -1, -1))
    backwards = replace(inventory, table=inventory.table.take(reversed_rows))
    options = replace(OPTIONS, rows_per_file=11)
    run(backwards, tiny_backbone, tmp_path, options=options)
    stores = [open_store(backbone, root, "fp32") for root in (filled[0], tmp_path)]
    first, second = (store.read(inventory.samples, VIEWS) for store in stores)
    np.testing.assert_array_equal(first, second)


def test_another_precision_is_another_store(
    filled, tiny_backbone: BackboneSpec, backbone: Backbone, inventory: Inventory
) -> None:
    one = replace(inventory, table=inventory.table.slice(0, 4))
    options = replace(OPTIONS, precision="bf16")
    summary = run(one, tiny_backbone, filled[0], (0,), options)
    assert (summary.reused, summary.extracted, summary.precision) == (0, 4, "bf16")
    maps = [
        open_store(backbone, filled[0], precision).read(one.samples, (0,)).astype(np.float32)
        for precision in ("fp32", "bf16")
    ]
    assert not np.array_equal(*maps)
    np.testing.assert_allclose(*maps, rtol=0.1, atol=0.05 * np.abs(maps[0]).max())


def test_bad_images_that_were_left_out_are_counted(
    filled, tiny_backbone: BackboneSpec, tmp_path: Path
) -> None:
    table = write_images(tmp_path / "images")
    Path(table["file"][2].as_py()).write_bytes(b"not an image")
    sound = take_inventory(table, tmp_path / "cache.arrow", skip_bad=True)
    summary = run(sound, tiny_backbone, filled[0])
    assert (summary.asked, summary.extracted, summary.bad) == (57, 0, 1)


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[:-1000])


def overwrite_the_middle(part: Path) -> None:
    content = bytearray(part.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(8)
    part.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, r" is damaged \(it is cut off or not an Arrow file\)"),
        (
            overwrite_the_middle,
            r" with 16 dense maps is damaged \(1 of the 16 maps looked at do not match their ",
        ),
    ],
)
def test_a_damaged_part_is_extracted_again_and_that_is_said(
    filled,
    tiny_backbone: BackboneSpec,
    backbone: Backbone,
    tmp_path: Path,
    inventory: Inventory,
    damage: Callable[[Path], None],
    reason: str,
) -> None:
    root = tmp_path / "store"
    shutil.copytree(filled[0], root)
    folder = root / filled[1].folder.name
    part = max(folder.glob("part-*.arrow"), key=lambda path: path.stat().st_size)
    damage(part)
    said: list[str] = []
    summary = run(inventory, tiny_backbone, root, say=said.append)
    assert (summary.reused, summary.extracted) == (44, 16)
    assert [path.name for path in folder.glob("*.damaged")] == [f"{part.name}.damaged"]
    (sentence,) = said
    assert re.search(f"{part.name}{reason}", sentence)
    assert f"set aside as {part.name}.damaged; " in sentence
    assert sentence.endswith("what this run needs of it is extracted again.")
    maps = [open_store(backbone, each, "fp32") for each in (filled[0], root)]
    first, second = (store.read(inventory.samples, VIEWS) for store in maps)
    np.testing.assert_array_equal(first, second)
    run(inventory, tiny_backbone, root, say=said.append)
    assert said == [sentence]


def test_weights_that_differ_between_nodes_stop_the_run(
    ray_cluster: None,
    tiny_backbone: BackboneSpec,
    backbone: Backbone,
    tmp_path: Path,
    inventory: Inventory,
) -> None:
    other = replace(backbone, trunk_digest="0" * 16)
    with pytest.raises(InputError, match=r"differ between the nodes .*: give .* the same file\.$"):
        run(inventory, tiny_backbone, tmp_path, backbone=other)


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(
    ray_cluster: None, tiny_backbone: BackboneSpec, tmp_path: Path, inventory: Inventory
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        run(inventory, tiny_backbone, tmp_path / "file")


@pytest.mark.parametrize(
    "options", [{"precision": "fp8"}, {"batch_size": 0}, {"rows_per_file": -1}, {"actors": 0}]
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"features.{next(iter(options))}="):
        ExtractionOptions(**options)


def test_more_actors_than_the_cluster_feeds_are_refused(
    ray_cluster: None, tiny_backbone: BackboneSpec, tmp_path: Path, inventory: Inventory
) -> None:
    with pytest.raises(InputError, match=r"features.actors=3 .*it has 2 CPUs"):
        run(inventory, tiny_backbone, tmp_path, options=replace(OPTIONS, actors=3))


KILLED = """
import json, sys, time
import ray, torch
from pathlib import Path
from safe_ray.features.extract import ExtractionOptions, ExtractionRequest, extract
from safe_ray.features.inventory import take_inventory
from safe_ray.specs import BackboneSpec
from tests.features.test_extract import write_images

images, root, model, config = sys.argv[1:]
inventory = take_inventory(write_images(Path(images), 120), Path(root) / "cache.arrow")
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

def progress(done, total, seconds_left):
    print(done, flush=True)
    if done:
        time.sleep(600)

extract(
    [ExtractionRequest.of(inventory)],
    (0, 1),
    BackboneSpec("tiny", model, None, config),
    Path(root),
    ExtractionOptions(batch_size=8, rows_per_file=8, actors=1),
    progress,
)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_run_goes_on_where_it_stopped(
    tiny_backbone: BackboneSpec, backbone: Backbone, ray_cluster: None, tmp_path: Path
) -> None:
    images, root = tmp_path / "images", tmp_path / "store"
    arguments = [str(images), str(root), tiny_backbone.model, str(tiny_backbone.model_config)]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().strip() == "0"
        assert int(process.stdout.readline()) == 8
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    inventory = take_inventory(write_images(images, 120), root / "cache.arrow")
    store = open_store(backbone, root, "fp32")
    _wait_until_quiet(store.folder)
    store.refresh()
    kept = 240 - len(store.missing(inventory.samples, (0, 1)))
    assert 8 <= kept < 240
    whole = {path: path.stat().st_mtime_ns for path in store.folder.glob("part-*.arrow")}

    summary = run(inventory, tiny_backbone, root, (0, 1))
    assert (summary.asked, summary.reused, summary.extracted) == (240, kept, 240 - kept)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    store.refresh()
    assert store.missing(inventory.samples, (0, 1)) == []


def _wait_until_quiet(folder: Path, seconds: float = 5.0) -> None:
    """Wait until the killed driver's workers, which notice a moment later, write no more."""
    before, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        now = len(list(folder.iterdir()))
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.2)
