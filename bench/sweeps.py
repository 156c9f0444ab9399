"""What the benches of whole searches share: a packaged task, its store filled, Ray started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from bench.harness import CORES
from safe_ray.backbones.openclip import load_backbone
from safe_ray.cluster import TrialPlan, connect, plan_trials
from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.features.inventory import no_progress
from safe_ray.search.groups import Group, described, groups_of
from safe_ray.sweep.data import draw_episodes, read_manifests
from safe_ray.sweep.extraction import extract_support
from safe_ray.sweep.images import check_images
from safe_ray.sweep.tasks import write_tasks
from safe_ray.training.facts import TaskFacts


@dataclass(frozen=True)
class ReadySweep:
    """A sweep up to the point where its search begins."""

    config: SweepConfig
    facts: Mapping[str, TaskFacts]
    groups: Sequence[Group]
    plan: TrialPlan
    ray_seconds: float
    store_seconds: float


def two_cores() -> None:
    """Give this process and its children the first two cores; Ray gives each its threads."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def ready(storage: Path, *overrides: str) -> ReadySweep:
    """Do what a sweep does before its search: check, start Ray, fill the store, write the tasks."""
    config = load_config([*overrides, f"storage={storage}", f"cluster.num_cpus={CORES}"])
    manifests = read_manifests(config)
    episodes = draw_episodes(config, manifests)
    backbone = load_backbone(config.backbone.spec())
    began = time.perf_counter()
    resources = connect(config.cluster.address, config.cluster.num_cpus)
    connected = time.perf_counter()
    plan = plan_trials(resources, 1, "auto", "auto", config.search.concurrent_trials)
    images = check_images(config, manifests, episodes, lambda _: no_progress)
    summary = extract_support(
        config, backbone, images.tasks, config.features.precision, no_progress
    )
    filled = time.perf_counter()
    config.outputs.mkdir(parents=True, exist_ok=True)
    groups = groups_of(config)
    names = tuple(backbone.state)
    methods = [described(group, backbone.pooling, names) for group in groups]
    facts = write_tasks(config, backbone, manifests, images.tasks, summary.precision, plan, methods)
    return ReadySweep(config, facts, groups, plan, connected - began, filled - connected)
