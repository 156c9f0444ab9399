"""Measure the shipped backbone on the shipped data sets: zero-shot, and a pooling tuned on a few.

One fixed recipe stands for the search of the main job: the numbers say whether tuning the pooling
can help on a data set, not how far a search would get.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from safe_ray.backbones.openclip import Backbone, load_backbone
from safe_ray.data.episodes import draw_episode
from safe_ray.data.images import decode_image
from safe_ray.data.manifest import load_manifest, read_image_bytes
from safe_ray.data.views import make_view, normalise
from safe_ray.heads.bank import Bank
from safe_ray.heads.blending import alpha_grid, sum_alpha_row
from safe_ray.heads.selection import Rule
from safe_ray.methods.knobs import KnobTable
from safe_ray.specs import BackboneSpec, DatasetSpec
from safe_ray.training.loop import LoopOptions, SupportShard, begin, train_bank
from safe_ray.training.maps import ResidentMaps
from safe_ray.training.members import Member

EMBEDDED = Path(__file__).parents[2] / "safe_ray" / "embedded"
MODEL = "pictogram-rn-128"
TEMPLATES = ("a drawing of a {}.", "an icon of a {}.", "{}")


def dense_maps(backbone: Backbone, table: pa.Table, views: int) -> Tensor:
    """Run the trunk over the views of every image: [N, views, L, C]."""
    maps = []
    for row, data in enumerate(read_image_bytes(table, range(table.num_rows))):
        image = decode_image(data)
        sample = str(table.column("path")[row])
        pixels = torch.stack(
            [make_view(image, backbone.preprocessing, sample, view) for view in range(views)]
        )
        with torch.no_grad():
            maps.append(backbone.trunk(normalise(pixels, backbone.preprocessing)))
    return torch.stack(maps)


def labels_of(table: pa.Table) -> Tensor:
    """Read the labels of a table."""
    return torch.tensor(table.column("label").to_pylist(), dtype=torch.int64)


def measure(
    backbone: Backbone, name: str, shots: int, seeds: list[int], options: argparse.Namespace
) -> dict[str, float]:
    """Give zero-shot accuracy, and means over the seeds of the tuned pooling and the blend."""
    spec = DatasetSpec(name, "parquet", str(options.folder / f"{name}.parquet"), TEMPLATES)
    manifest = load_manifest(spec, Path())
    classifier = backbone.classifier(manifest.classes, manifest.templates)
    test = manifest.split("test")

    def pools(maps: Tensor, heads: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        bank = Bank(heads, backbone.pooling, (), classifier, backbone.logit_scale)
        with torch.no_grad():
            return bank.pool(backbone.pooling.prepare(maps)), backbone.pool(maps)

    def tables(tuned: Tensor, base: Tensor, answers: Tensor) -> list[KnobTable]:
        alphas = alpha_grid(101)
        sums = sum_alpha_row(tuned, base, classifier, answers, backbone.logit_scale, alphas)
        return [KnobTable.of(head, {"alpha": alphas}, {}, Rule()) for head in sums]

    test_maps, truth = dense_maps(backbone, test, 1)[:, 0], labels_of(test)
    found: dict[str, list[float]] = {"zero_shot": [], "tuned": [], "safe": []}
    for seed in seeds:
        episode = draw_episode(manifest, shots, seed)
        maps = dense_maps(backbone, episode.train, options.views)
        count = len(maps)
        source = ResidentMaps(maps, torch.device("cpu"))
        shard = SupportShard(source, labels_of(episode.train), torch.arange(count), count)
        state = train_bank(
            [Member(lr, 0.01, options.epochs) for lr in options.lr],
            begin(backbone.state, len(options.lr)),
            shard,
            classifier,
            backbone.pooling,
            backbone.logit_scale,
            LoopOptions(batch_size=64, warmup=0.1, seed=seed, trained=tuple(backbone.state)),
        )
        heads = [dict(member.head) for member in state.members]
        held = dense_maps(backbone, episode.validation, 1)[:, 0]
        held_tables = tables(*pools(held, heads), labels_of(episode.validation))
        scores = [table.figures[table.best].score for table in held_tables]
        best = scores.index(max(scores))
        (table,) = tables(*pools(test_maps, [heads[best]]), truth)
        accuracy = [point.accuracy for point in table.figures]
        found["zero_shot"].append(accuracy[0])
        found["tuned"].append(accuracy[-1])
        found["safe"].append(accuracy[held_tables[best].best])
    mean = {key: round(sum(values) / len(values), 3) for key, values in found.items()}
    return {**mean, "test": float(len(truth)), "classes": float(len(manifest.classes))}


def main() -> None:
    """Print one line of JSON per data set and number of shots."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=EMBEDDED, help="folder of the weights and data sets")
    add("--data", nargs="*", help="names of data sets (default: all)")
    add("--shots", type=int, nargs="+", default=[2])
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--views", type=int, default=4, help="views per training image")
    add("--epochs", type=int, default=30)
    add("--lr", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    add("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = options.folder / f"{MODEL}.safetensors"
    spec = BackboneSpec("pictogram", MODEL, str(weights), str(EMBEDDED / f"{MODEL}.json"))
    backbone = load_backbone(spec)
    for name in options.data or sorted(path.stem for path in options.folder.glob("*.parquet")):
        for shots in options.shots:
            result = measure(backbone, name, shots, options.seeds, options)
            print(json.dumps({"dataset": name, "shots": shots, **result}), flush=True)


if __name__ == "__main__":
    main()
