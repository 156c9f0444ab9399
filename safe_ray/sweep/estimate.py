"""What a sweep will need, before it runs: dense maps, disk, and a rough time.

The time is a measurement of a second or two on this machine, multiplied: one thread runs the trunk,
and trains two candidates on made-up maps. What other programs do meanwhile, decoding, the start of
processes and validation are not in it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from safe_ray.backbones.openclip import Backbone, load_backbone, weights_at_hand
from safe_ray.config import SweepConfig
from safe_ray.data.episodes import Episode
from safe_ray.data.manifest import Manifest
from safe_ray.features.extract import dense_maps, open_store, resolve_precision
from safe_ray.features.plan import plan_batch_size
from safe_ray.poolings import queries
from safe_ray.poolings.base import PROJECTION, alone_of, select_parameters
from safe_ray.search.groups import Group, groups_of
from safe_ray.search.space import Quantity
from safe_ray.specs import Range, Task
from safe_ray.sweep.data import selection_of
from safe_ray.sweep.schedule import most_epochs, views_of
from safe_ray.training.loop import LoopOptions, SupportShard, begin, train_bank
from safe_ray.training.maps import ResidentMaps
from safe_ray.training.members import Member

MEASURED_SECONDS = 1.0

_TIMED_MEMBERS = 2
_TIMED_CLASSES = 10

Wanted = dict[tuple[str, str], set[int]]
"""The views that a sweep wants of each image: of (data set, path)."""


@dataclass(frozen=True)
class Estimate:
    """What a sweep will need.

    Attributes:
        maps: dense maps in all.
        missing: of these, how many are not in the feature store.
        bytes_per_map: bytes of one on disk.
        maps_per_second: what this machine's processors or GPUs would extract.
        steps: candidates times samples that pass the pooling in training, in all tasks.
        steps_per_second: what this machine would do of these.
        device: what was measured, in words.
        at_hand: whether the weights are on this machine; without them, nothing is known of what
            the store has.
    """

    maps: int
    missing: int
    bytes_per_map: int
    maps_per_second: float
    steps: float
    steps_per_second: float
    device: str
    at_hand: bool

    @property
    def bytes(self) -> int:
        """What the feature store will grow by."""
        return self.missing * self.bytes_per_map

    @property
    def extraction_seconds(self) -> float:
        """Roughly, for the trunk alone."""
        return self.missing / self.maps_per_second

    @property
    def search_seconds(self) -> float:
        """Roughly, for training alone."""
        return self.steps / self.steps_per_second


def wanted_views(
    config: SweepConfig, manifests: Mapping[str, Manifest], episodes: Mapping[Task, Episode]
) -> Wanted:
    """Return which views of which images the sweep will use."""
    wanted: Wanted = {}

    def want(dataset: str, paths: Iterable[str], views: range) -> None:
        for path in paths:
            wanted.setdefault((dataset, path), set()).update(views)

    for task, episode in episodes.items():
        views = range(views_of(config, task, episode.train.num_rows) + 1)
        want(task.dataset, episode.train.column("path").to_pylist(), views)
        want(task.dataset, episode.validation.column("path").to_pylist(), range(1))
    for name, manifest in manifests.items():
        want(name, manifest.split("test").column("path").to_pylist(), range(1))
    return wanted


def estimate(
    config: SweepConfig,
    wanted: Wanted,
    samples: Mapping[tuple[str, str], str],
    episodes: Mapping[Task, Episode],
    seconds: float = MEASURED_SECONDS,
) -> Estimate:
    """Count what is missing, and time this machine.

    Args:
        config: of the sweep.
        wanted: see `wanted_views`.
        samples: the sample digest of each image of `wanted` that was looked at.
        episodes: of the tasks.
        seconds: how long to measure the trunk, and training again.

    Raises:
        InputError: the backbone cannot be loaded. Weights that would have to be downloaded are not
            missed: those that are made up take as long.
    """
    spec = config.backbone.spec()
    at_hand = weights_at_hand(spec)
    if not at_hand:
        spec = replace(spec, pretrained=None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(spec, device, parts=("trunk", "pooling"))
    units = torch.cuda.device_count() if device.type == "cuda" else _cores(config)
    precision = resolve_precision(config.features.precision)
    store = open_store(backbone, config.features.store, precision)
    by_sample: dict[str, set[int]] = {}
    for place, views in wanted.items():
        by_sample.setdefault(samples.get(place, "/".join(place)), set()).update(views)
    maps = sum(map(len, by_sample.values()))
    alike: dict[tuple[int, ...], list[str]] = {}
    for sample, views in by_sample.items():
        alike.setdefault(tuple(sorted(views)), []).append(sample)
    missing = sum(len(store.missing(group, views)) for views, group in alike.items())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trunk = _time_trunk(backbone, precision, device, seconds)
        training = _time_training(config, backbone, device, seconds)
    finally:
        torch.set_num_threads(threads)
    what = "GPU" if device.type == "cuda" else "processor core"
    return Estimate(
        maps=maps,
        missing=missing,
        bytes_per_map=store.bytes_per_row,
        maps_per_second=trunk * units,
        steps=sum(
            _steps(config, group, task, episode)
            for group in groups_of(config)
            for task, episode in episodes.items()
        ),
        steps_per_second=training * units,
        device=f"{units} {what}{'s' * (units != 1)} of this machine",
        at_hand=at_hand,
    )


def _cores(config: SweepConfig) -> int:
    if config.cluster.num_cpus is not None:
        return config.cluster.num_cpus
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _steps(config: SweepConfig, group: Group, task: Task, episode: Episode) -> float:
    if group.recipe is None:
        return 0.0
    most = most_epochs(config, task, episode.train.num_rows)
    space = group.space if most is None else group.space.with_most("epochs", most)
    folds = config.search.folds if selection_of(config, episode) == "cross" else 0
    passes = group.candidates(config.search.candidates) * _mean(space.quantities["epochs"])
    return passes * episode.train.num_rows * (1 + folds)


def _mean(value: Quantity) -> float:
    if not isinstance(value, Range):
        return float(value)
    if value.log:
        return (value.high - value.low) / math.log(value.high / value.low)
    return (value.low + value.high) / 2


def _time_trunk(backbone: Backbone, precision: str, device: torch.device, seconds: float) -> float:
    """Return dense maps a second."""
    backbone.trunk.to(memory_format=torch.channels_last)
    size = backbone.preprocessing.size
    batch = plan_batch_size(size, device.type == "cuda")
    pixels = np.zeros((batch, 3, size, size), np.uint8)
    calls = _calls_in(lambda: dense_maps(backbone, pixels, precision, batch, device.type), seconds)
    return batch * calls


def _time_training(
    config: SweepConfig, backbone: Backbone, device: torch.device, seconds: float
) -> float:
    """Return candidates times samples a second."""
    generator = torch.Generator().manual_seed(0)
    batch = config.training.batch_size
    maps = torch.rand(batch, 1, backbone.tokens, backbone.width, generator=generator)
    classifier = torch.rand(_TIMED_CLASSES, backbone.embed_dim, generator=generator)
    original = {name: tensor.cpu() for name, tensor in backbone.state.items()}
    shard = SupportShard(
        ResidentMaps(maps.half().to(device), device),
        (torch.arange(batch) % _TIMED_CLASSES).to(device),
        torch.arange(batch, device=device),
        batch,
    )
    trained = _timed_parameters(config, backbone)
    first, shared = queries.beginning(backbone.pooling, original, trained)
    options = LoopOptions(
        batch,
        config.training.warmup,
        0,
        trained,
        torch.bfloat16 if config.training.precision == "bf16" else None,
        shared=shared,
    )

    def train(epochs: int) -> None:
        train_bank(
            [Member(1e-5, 0.01, epochs)] * _TIMED_MEMBERS,
            begin(first, _TIMED_MEMBERS),
            shard,
            torch.nn.functional.normalize(classifier, dim=-1).to(device),
            backbone.pooling,
            backbone.logit_scale,
            options,
        )

    # What is done once for a bank is not to be multiplied by its epochs.
    few, many = 1, 5
    train(few)
    once = 1 / _calls_in(lambda: train(few), seconds / 2)
    more = 1 / _calls_in(lambda: train(many), seconds / 2)
    epoch = max(more - once, more / many / 2) / (many - few)
    return _TIMED_MEMBERS * batch / epoch


def _timed_parameters(config: SweepConfig, backbone: Backbone) -> tuple[str, ...]:
    """Return what the sweep trains; the output projection where there is no more to train."""
    pooling, names = backbone.pooling, tuple(backbone.state)
    wanted = config.training.parameters
    if wanted == "all" and alone_of(pooling):
        return select_parameters(pooling, (PROJECTION,), names)
    return select_parameters(pooling, wanted, names)


def _calls_in(work: Callable[[], object], seconds: float) -> float:
    """Return how often `work` is done in a second; it is done once before the clock starts."""
    work()
    began = time.perf_counter()
    calls = 0
    while (passed := time.perf_counter() - began) < seconds or calls == 0:
        work()
        calls += 1
    return calls / passed
