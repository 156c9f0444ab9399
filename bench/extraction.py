"""Extraction through Ray Data does 0.9 or more of the images a second of a bare torch loop.

The bare loop decodes an image, makes its views and runs the trunk over batches, with both cores, in
the same precision and layout; it keeps nothing. Ours also checks every image's digest and writes
the store.

Ray's processes take seconds to start, which is stated and not counted: ours is timed from its first
part to its last. While they start, ours decodes ahead; so that this does not count in its favour,
the decoding of what is counted is added to its time as if nothing had hidden it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch

from bench.harness import CORES, arguments, check_close, finish, interleave
from bench.recompute import photographs
from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.cluster import connect
from safe_ray.compose import load_config
from safe_ray.data.images import decode_image
from safe_ray.data.manifest import load_manifest
from safe_ray.data.views import make_view, normalise
from safe_ray.devices import cpu_capabilities, has_instructions
from safe_ray.features.extract import ExtractionOptions, ExtractionRequest, extract, open_store
from safe_ray.features.inventory import sample_digest
from safe_ray.specs import BackboneSpec


@dataclass(frozen=True)
class Images:
    """Encoded images, the views of each, and how many of these make a batch and a part."""

    files: list[bytes]
    views: int
    batch_size: int
    part: int

    @property
    def samples(self) -> list[str]:
        """Their digests."""
        return [sample_digest(file) for file in self.files]

    def request(self) -> ExtractionRequest:
        """Ask for all views of all images."""
        table = pa.table(
            {
                "sample": self.samples,
                "path": self.samples,
                "image": pa.array(self.files, pa.large_binary()),
            }
        )
        return ExtractionRequest(table, tuple(range(self.views)))


def bare_loop(backbone: Backbone, images: Images) -> list[np.ndarray]:
    """Decode, make views, run the trunk: the maps of every batch, in float16."""
    maps: list[np.ndarray] = []
    block: list[torch.Tensor] = []

    def run() -> None:
        pixels = normalise(torch.stack(block), backbone.preprocessing)
        with torch.inference_mode():
            tokens = backbone.trunk(pixels.contiguous(memory_format=torch.channels_last))
        maps.append(tokens.to(torch.float16).numpy())
        block.clear()

    for sample, file in zip(images.samples, images.files, strict=True):
        image = decode_image(file)
        for view in range(images.views):
            block.append(make_view(image, backbone.preprocessing, sample, view))
            if len(block) == images.batch_size:
                run()
    if block:
        run()
    return maps


def compare(name: str, spec: BackboneSpec, images: Images) -> float:
    """Print one backbone's figures, and return ours over the bare loop's images a second."""
    backbone = load_backbone(spec, parts=("trunk",))
    backbone.trunk.to(memory_format=torch.channels_last)
    options = ExtractionOptions(
        precision="fp32", batch_size=images.batch_size, rows_per_file=images.part
    )
    rows = len(images.files) * images.views
    torch.set_num_threads(CORES)
    bare_loop(backbone, Images(images.files[:1], images.batch_size, images.batch_size, 1))
    seconds = []
    maps = []
    ticks: list[tuple[float, int]] = []

    def tick(done: int, _: int, __: float | None) -> None:
        ticks.append((time.perf_counter(), done))

    # The bare loop before and after, so that a disturbance meets both sides.
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2):
            start = time.perf_counter()
            maps.append(np.concatenate(bare_loop(backbone, images)))
            seconds.append(time.perf_counter() - start)
            if turn == 0:
                start = time.perf_counter()
                extract(
                    [images.request()], (), spec, Path(folder), options, tick, backbone=backbone
                )
                whole = time.perf_counter() - start
        store = open_store(backbone, Path(folder), "fp32")
        found = store.read(images.samples, range(images.views)).reshape(maps[0].shape)
    for mine in maps:
        check_close(
            f"a dense map of {name}",
            torch.from_numpy(found).float(),
            torch.from_numpy(mine).float(),
            1e-3,
        )
    start = time.perf_counter()
    for sample, file in zip(images.samples, images.files, strict=True):
        image = decode_image(file)
        for view in range(images.views):
            make_view(image, backbone.preprocessing, sample, view)
    decoding = (time.perf_counter() - start) / CORES
    parts = [at for at in ticks if at[1]]
    (first, before), (last, after) = parts[0], parts[-1]
    counted = after - before
    hidden = counted / (last - first)
    rate = counted / (last - first + decoding * counted / rows)
    bare_rate = rows * len(seconds) / sum(seconds)
    print(
        f"{name}: {rate:.1f} images/s through Ray Data ({hidden:.1f} where decoding hides behind "
        f"the start-up, which is {whole - rows / hidden:.1f} s), {bare_rate:.1f} in a bare loop: "
        f"{rate / bare_rate:.2f}"
    )
    return rate / bare_rate


def layouts(name: str, spec: BackboneSpec, repeats: int, batch: int) -> str:
    """Print how fast the trunk is in each precision and layout, and return the fastest."""
    torch.set_num_threads(CORES)
    plain, last = (load_backbone(spec, parts=("trunk",)) for _ in range(2))
    last.trunk.to(memory_format=torch.channels_last)
    size = plain.preprocessing.size
    images = torch.randn(batch, 3, size, size)
    images_last = images.contiguous(memory_format=torch.channels_last)

    def forward(backbone: Backbone, batch: torch.Tensor, half: bool) -> Callable[[], torch.Tensor]:
        @torch.inference_mode()
        def run() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                return backbone.trunk(batch)

        return run

    sides = {
        "fp32": forward(plain, images, False),
        "fp32 channels-last": forward(last, images_last, False),
    }
    tolerances = {"fp32 channels-last": 1e-4}
    if has_instructions("bf16", cpu_capabilities()):
        sides["bf16"] = forward(plain, images, True)
        sides["bf16 channels-last"] = forward(last, images_last, True)
        tolerances["bf16"] = 5e-2
    expected = sides["fp32"]()
    for side, tolerance in tolerances.items():
        check_close(f"{name} in {side}", sides[side]().float(), expected, tolerance)
    medians = interleave(sides, repeats)
    best = min(medians, key=lambda side: medians[side])
    rates = ", ".join(f"{side} {batch / medians[side]:.1f}" for side in sides)
    print(f"{name}'s trunk alone, images/s: {rates}; best is {best}")
    return best


def main() -> None:
    """Compare with the package's backbone and at RN50's size."""
    quick = arguments(str(__doc__)).quick
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    torch.manual_seed(0)
    config = load_config()
    embedded = config.backbone.spec()
    rn50 = BackboneSpec("rn50", "RN50")
    manifest = load_manifest(config.dataset_specs()["pictogram_foods"], config.data.root, "single")
    encoded = manifest.split("train").column("image").to_pylist()
    connect(None, CORES)
    drawings = Images(
        encoded[: 8 if quick else None], 4 if quick else 33, *((4, 4) if quick else (32, 128))
    )
    photos = Images(photographs(2 if quick else 8), 16, 8, 8)
    best = {"pictogram": layouts("pictogram", embedded, 1 if quick else 3, 4 if quick else 32)}
    if not quick:
        best["rn50"] = layouts("rn50", rn50, 3, 8)
    ratios = {"pictogram": compare("pictogram", embedded, drawings)}
    if not quick:
        ratios["rn50"] = compare("rn50", rn50, photos)
    # So that nothing of Ray's follows the last line.
    ray.shutdown()
    finish(
        "extraction",
        min(ratios.values()),
        0.9,
        ratio_by_backbone={name: round(ratio, 3) for name, ratio in ratios.items()},
        best_precision_and_layout=best,
    )


if __name__ == "__main__":
    main()
