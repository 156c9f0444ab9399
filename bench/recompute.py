"""A whole search takes a thirtieth of the time of one that runs the trunk in every epoch.

The other side is what scripts for fine-tuning do: each candidate in turn, and in every epoch each
image is decoded, augmented and sent through the frozen trunk, then open_clip's pooling is trained
by torch's AdamW. Ours sends each of ten views through the trunk once and trains banks on the maps.

RN50's size, random weights. A search of 32 candidates and 40 epochs is composed of parts that are
measured here; the composition is held against both whole loops, run small, whose views are the same
so that their losses must be.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from open_clip.modified_resnet import AttentionPool2d
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench.harness import CORES, arguments, check_close, finish, interleave, pin
from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.data.images import decode_image
from safe_ray.data.views import make_view, normalise
from safe_ray.features.decoding import decode_views
from safe_ray.features.inventory import sample_digest
from safe_ray.features.plan import plan_batch_size
from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.features.trunk import dense_maps
from safe_ray.heads.bank import Bank, tuned_logits
from safe_ray.heads.optimiser import BankOptimiser, Schedule
from safe_ray.heads.step import Step
from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.specs import BackboneSpec
from safe_ray.training.loop import (
    LoopOptions,
    SupportShard,
    begin,
    epoch_plan,
    train_bank,
)
from safe_ray.training.maps import ResidentMaps
from safe_ray.training.members import Member

_LR, _DECAY, _SEED, _WARMUP = 1e-5, 0.01, 0, 0.1
_SPEC = BackboneSpec("rn50", "RN50")


@dataclass(frozen=True)
class Search:
    """How much a search is."""

    candidates: int
    epochs: int
    views: int
    bank: int


def photographs(count: int) -> list[bytes]:
    """Smooth random pictures of 500 x 375 pixels as JPEG, about as large as photographs are."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        small = generator.integers(0, 256, (24, 32, 3), np.uint8)
        picture = Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC)
        noise = generator.integers(-12, 13, (375, 500, 3))
        pixels = np.clip(np.asarray(picture).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


class Problem:
    """A few labelled images, a backbone, and both ways to search."""

    def __init__(self, images: int, classes: int, model: str) -> None:
        self.files = photographs(images)
        self.samples = [sample_digest(file) for file in self.files]
        self.labels = torch.arange(images) % classes
        self.backbone: Backbone = load_backbone(
            BackboneSpec(_SPEC.name, model), parts=("trunk", "pooling")
        )
        self.backbone.trunk.to(memory_format=torch.channels_last)
        shape = (classes, self.backbone.embed_dim)
        self.classifier = functional.normalize(torch.randn(shape), dim=-1)
        self.scale = 100.0

    # The usual way.

    def augment(self, index: int, view: int) -> Tensor:
        """Decode an image and make one view of it, as a data loader would: uint8 pixels."""
        image = decode_image(self.files[index])
        return make_view(image, self.backbone.preprocessing, self.samples[index], view)

    @torch.no_grad()
    def trunk(self, pixels: Tensor) -> Tensor:
        """Return `[N, C, H, W]`, as open_clip's pooling takes it."""
        images = normalise(pixels, self.backbone.preprocessing)
        tokens = self.backbone.trunk(images.contiguous(memory_format=torch.channels_last))
        side = math.isqrt(self.backbone.tokens)
        return tokens.transpose(1, 2).unflatten(2, (side, side)).contiguous()

    def layer(self) -> tuple[AttentionPool2d, torch.optim.AdamW]:
        """A fresh pooling and its optimiser."""
        backbone = self.backbone
        assert isinstance(backbone.pooling, AttentionPool)
        side, heads = math.isqrt(backbone.tokens), backbone.pooling.num_heads
        layer = AttentionPool2d(side, backbone.width, heads, backbone.embed_dim)
        layer.load_state_dict(backbone.state)
        return layer, torch.optim.AdamW(layer.parameters(), lr=_LR, weight_decay=_DECAY)

    def pooling_step(
        self, layer: AttentionPool2d, optimiser: torch.optim.AdamW, maps: Tensor, lr: float
    ) -> float:
        """One step of one candidate."""
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        logits = tuned_logits(layer(maps), self.classifier, self.scale)
        loss = functional.cross_entropy(logits, self.labels)
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    def usual_loop(self, search: Search) -> list[list[float]]:
        """Train every candidate with online views; return the loss of each epoch."""
        losses: list[list[float]] = []
        for _ in range(search.candidates):
            layer, optimiser = self.layer()
            schedule = Schedule(_LR, search.epochs, round(_WARMUP * search.epochs))
            losses.append([])
            for epoch in range(search.epochs):
                # The views that our side has cached, so that both sides train on the same pixels.
                _, view = epoch_plan(_SEED, epoch, len(self.files), search.views)
                pixels = torch.stack([self.augment(i, int(v)) for i, v in enumerate(view)])
                maps = self.trunk(pixels)
                losses[-1].append(self.pooling_step(layer, optimiser, maps, schedule.at(epoch)))
        return losses

    # Our way.

    def chunk(self, views: int) -> pa.Table:
        """All images with all views, as extraction hands them to a decoder."""
        rows = len(self.files)
        return pa.table(
            {
                "sample": self.samples,
                "path": self.samples,
                "views": pa.array([list(range(views))] * rows, pa.list_(pa.int16())),
                "image": pa.array(self.files, pa.large_binary()),
                "file": pa.nulls(rows, pa.string()),
                "offset": pa.nulls(rows, pa.int64()),
                "length": pa.nulls(rows, pa.int64()),
            }
        )

    def extract(self, folder: Path, views: int) -> FeatureStore:
        """Every view once through the trunk, into a store."""
        backbone = self.backbone
        key = StoreKey(backbone.trunk_digest, {}, "fp32", "bench")
        store = FeatureStore(folder, key, backbone.tokens, backbone.width)
        rows = decode_views(self.chunk(views), backbone.preprocessing.to_json())
        torch.set_num_threads(CORES)
        batch = min(plan_batch_size(backbone.preprocessing.size, gpu=False), len(rows["view"]))
        maps = dense_maps(backbone, rows["pixels"], "fp32", batch, "cpu")
        store.write_part(rows["sample"].tolist(), rows["view"].tolist(), maps)
        return store

    def our_loop(self, search: Search, folder: Path) -> list[list[float]]:
        """Extract, then train all candidates in banks; return the loss of each epoch."""
        store = self.extract(folder, search.views)
        maps = torch.from_numpy(store.read(self.samples, range(search.views)))
        resident = ResidentMaps(maps, torch.device("cpu"))
        shard = SupportShard(resident, self.labels, torch.arange(len(maps)), len(maps))
        options = LoopOptions(len(maps), _WARMUP, _SEED, tuple(self.backbone.state))
        losses: list[list[float]] = []
        for first in range(0, search.candidates, search.bank):
            size = min(search.bank, search.candidates - first)
            state = train_bank(
                [Member(_LR, _DECAY, search.epochs)] * size,
                begin(self.backbone.state, size),
                shard,
                self.classifier,
                self.backbone.pooling,
                self.scale,
                options,
            )
            losses += [member.losses for member in state.members]
        return losses


@dataclass(frozen=True)
class Parts:
    """Seconds of each part: of an image, of a step of a head, and of a search."""

    augment: float
    trunk: float
    layer_start: float
    layer_step: float
    store: float
    bank_start: float
    bank_step: float

    def usual(self, search: Search, images: int) -> dict[str, float]:
        """Return what the usual search spends on what."""
        times = search.candidates * search.epochs
        return {
            "decoding and augmenting": times * images * self.augment,
            "trunk": times * images * self.trunk,
            "pooling": times * self.layer_step + search.candidates * self.layer_start,
        }

    def ours(self, search: Search, images: int) -> dict[str, float]:
        """Return what our search spends on what."""
        rows = images * search.views
        return {
            "decoding and augmenting": rows * self.augment,
            "trunk": rows * self.trunk,
            "store, written and read": rows * self.store,
            "bank": search.candidates * (search.epochs * self.bank_step + self.bank_start),
        }


def measure(problem: Problem, bank: int, repeats: int) -> Parts:
    """Measure the parts, in turns."""
    images = len(problem.files)
    pixels = torch.stack([problem.augment(i, 1) for i in range(images)])
    maps = problem.trunk(pixels)
    tokens = maps.flatten(2).transpose(1, 2).contiguous()
    halves = tokens.to(torch.float16).numpy()
    layer, optimiser = problem.layer()
    backbone = problem.backbone

    def new_bank() -> tuple[Bank, Step]:
        heads = Bank(
            [backbone.state] * bank,
            backbone.pooling,
            tuple(backbone.state),
            problem.classifier,
            problem.scale,
        )
        step = backbone.pooling.step(heads, BankOptimiser(heads, [_DECAY] * bank))
        assert step is not None
        return heads, step

    step = new_bank()[1]
    weights = torch.full((bank, images), 1 / images)
    turn = iter(range(10**6))
    with tempfile.TemporaryDirectory() as folder:

        def store() -> None:
            key = StoreKey(f"bench-{next(turn)}", {}, "fp32", "bench")
            kept = FeatureStore(Path(folder), key, tokens.shape[1], tokens.shape[2])
            kept.write_part(problem.samples, [0] * images, halves)
            kept.read(problem.samples, (0,))

        def finished_bank() -> None:
            heads, _ = new_bank()
            # What ends a bank: three copies of each head.
            for place in range(bank):
                for _ in range(3):
                    _ = {name: value.clone() for name, value in heads.head(place).items()}

        medians = interleave(
            {
                "augment": lambda: [problem.augment(i, 1) for i in range(images)],
                "trunk": lambda: problem.trunk(pixels),
                "layer start": problem.layer,
                "layer step": lambda: problem.pooling_step(layer, optimiser, maps, _LR),
                "store": store,
                "bank start": finished_bank,
                "bank step": lambda: step(
                    backbone.pooling.prepare(tokens.half()), problem.labels, weights, [_LR] * bank
                ),
            },
            repeats,
        )
    return Parts(
        augment=medians["augment"] / images,
        trunk=medians["trunk"] / images,
        layer_start=medians["layer start"],
        layer_step=medians["layer step"],
        store=medians["store"] / images,
        bank_start=medians["bank start"] / bank,
        bank_step=medians["bank step"] / bank,
    )


def show(name: str, parts: dict[str, float]) -> float:
    """Print a break-down, and return its sum."""
    total = sum(parts.values())
    shares = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
    print(f"{name}: {total:.1f} s ({shares})")
    return total


def compare_small(problem: Problem, small: Search) -> dict[str, float]:
    """Run both loops small: their losses must be equal. Return their seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        usual = problem.usual_loop(small)
        middle = time.perf_counter()
        ours = problem.our_loop(small, Path(folder))
        end = time.perf_counter()
    # Our maps are kept in float16.
    check_close("the loss", torch.tensor(ours), torch.tensor(usual), 1e-2)
    return {"usual": middle - start, "ours": end - middle}


def main() -> None:
    """Check both loops, measure the parts, and compose the search."""
    quick = arguments(str(__doc__)).quick
    pin()
    images = 2 if quick else 32
    search = Search(candidates=32, epochs=40, views=10, bank=8)
    small = Search(candidates=2, epochs=2, views=2, bank=2)
    problem = Problem(images, classes=2 if quick else 8, model="RN50")
    # Once to check and to warm up, once to be timed.
    compare_small(problem, Search(candidates=2, epochs=1, views=1, bank=2))
    small_seconds = compare_small(problem, small)
    parts = measure(problem, 2 if quick else search.bank, 1 if quick else 3)
    print("parts: " + ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in asdict(parts).items()))
    predictions = {}
    for name, predict in (("usual", parts.usual), ("ours", parts.ours)):
        predictions[name] = sum(predict(small, images).values())
        print(
            f"2 candidates, 2 epochs, 2 views, {name}: measured {small_seconds[name]:.2f} s, "
            f"composed {predictions[name]:.2f} s"
        )
    print(f"{search}, {images} images")
    usual = show("usual", parts.usual(search, images))
    ours = show("ours", parts.ours(search, images))
    finish(
        "recompute",
        usual / ours,
        30.0,
        usual_seconds=round(usual, 1),
        seconds=round(ours, 1),
        measured_over_composed={
            name: round(small_seconds[name] / predictions[name], 2) for name in predictions
        },
    )


if __name__ == "__main__":
    main()
