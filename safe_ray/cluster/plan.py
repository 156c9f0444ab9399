"""Sharing a cluster out among trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safe_ray.cluster.resources import ClusterResources, Node, counted
from safe_ray.errors import InputError

# Ray's placement works in steps of 1/10000; what is below does not exist.
_EPSILON = 1e-6
# The process of a trial whose workers are elsewhere, and the reading of their shards.
_NESTED_TRIAL_CPUS = 0.1
_READING_CPUS = 0.2
# The rest of a node's memory is for Ray's object store, the store's page cache and the driver.
_USABLE_MEMORY = 0.5
_LEAST_CPUS = 0.1
_MOST_CPUS_BESIDE_A_GPU = 8.0

Auto = Literal["auto"]


@dataclass(frozen=True)
class TrialPlan:
    """What each trial reserves, and how many trials run at once.

    Attributes:
        concurrent: trials at once.
        trial_cpus: CPUs of the trial's own process.
        trial_gpus: GPUs of the trial's own process.
        cpus_per_worker: CPUs of each worker; with one worker, of the trial itself.
        gpus_per_worker: GPUs of each worker.
        threads: torch's threads in whatever trains.
        memory: bytes of the training device that one worker may use.
        host_memory: bytes of a node's memory that one worker may use beside a GPU; 0 without one.
    """

    concurrent: int
    trial_cpus: float
    trial_gpus: float
    cpus_per_worker: float
    gpus_per_worker: float
    threads: int
    memory: int
    host_memory: int


def plan_trials(
    resources: ClusterResources,
    workers: int,
    cpus_per_worker: float | Auto,
    gpus_per_worker: float | Auto,
    concurrent: int | Auto,
) -> TrialPlan:
    """Share a cluster out among trials.

    With one worker a trial trains in its own process. With several, its process only waits for
    them, and a little is left for reading their shards.

    Args:
        resources: what the cluster offers.
        workers: of each trial.
        cpus_per_worker: `auto` gives each worker a core (where there are GPUs, its share of the
            node's cores), and less if the workers would not fit otherwise.
        gpus_per_worker: `auto` is 1 where there are GPUs and 0 elsewhere.
        concurrent: trials at once; `auto` is as many as fit.

    Raises:
        InputError: the workers of one trial do not fit; it names what there is and what is missing.
            Or a part of a GPU is asked for that no worker can have.
    """
    check_cpus(resources.nodes)
    gpus = gpus_per_worker if gpus_per_worker != "auto" else float(resources.gpus >= 1)
    _check_shares(workers, gpus)
    overhead = _NESTED_TRIAL_CPUS + _READING_CPUS if workers > 1 else 0.0
    if cpus_per_worker == "auto":
        cpus = _automatic_cpus(resources, workers, gpus, overhead)
    else:
        cpus = float(cpus_per_worker)
    if not _fits(resources, workers, cpus, gpus, overhead):
        raise InputError(_too_many(resources, workers, cpus, gpus, overhead))
    at_once = _fitting_trials(resources, workers, cpus, gpus, overhead)
    if concurrent != "auto":
        at_once = min(at_once, concurrent)
    nested = workers > 1
    return TrialPlan(
        concurrent=at_once,
        trial_cpus=_NESTED_TRIAL_CPUS if nested else cpus,
        trial_gpus=0.0 if nested else gpus,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
        threads=max(1, int(cpus)),
        memory=_memory(resources, cpus, gpus),
        host_memory=_host_memory(resources, cpus) if gpus > 0 else 0,
    )


def check_cpus(nodes: Sequence[Node]) -> None:
    """Check that there is anything to compute with.

    Args:
        nodes: that are there, or may still come.

    Raises:
        InputError: none of them has a CPU.
    """
    if sum(node.cpus for node in nodes) < _EPSILON:
        raise InputError(
            "The Ray cluster has no CPU: start its nodes with --num-cpus of 1 or more; or, if an "
            "autoscaler brings them when they are needed, say what it may bring with "
            "cluster.ceiling, such as 'cluster.ceiling=[{nodes: 4, cpus: 8}]'."
        )


def _check_shares(workers: int, gpus: float) -> None:
    whole = gpus == int(gpus)
    if gpus > 1 and not whole:
        raise InputError(
            f"training.gpus_per_worker={gpus:g} is no share that Ray gives out: give a whole "
            "number, or less than 1 to let several trials share a GPU."
        )
    if workers > 1 and not whole:
        raise InputError(
            f"training.workers={workers} with training.gpus_per_worker={gpus:g} would put workers "
            "of one bank on one GPU, where they cannot talk to each other: give each a whole GPU, "
            "or share GPUs among trials with training.workers=1."
        )


def _automatic_cpus(
    resources: ClusterResources, workers: int, gpus: float, overhead: float
) -> float:
    """Return the most that is useful to a worker and lets all of them fit."""
    wanted = 1.0
    if gpus > 0:
        shares = [node.cpus * gpus / node.gpus for node in resources.nodes if node.gpus >= gpus]
        wanted = min(_MOST_CPUS_BESIDE_A_GPU, max(1.0, min(shares, default=1.0) - overhead))
    elif workers > max(1.0, resources.cpus + _EPSILON):
        return wanted
    # Cutting a node into equal parts, with or without the trial's own process on it, gives every
    # size at which one more worker fits.
    parts = {
        _rounded_down((node.cpus - taken) / count)
        for node in set(resources.nodes)
        for taken in (0.0, overhead)
        for count in range(1, workers + 1)
    }
    sizes = sorted({wanted, *(part for part in parts if _LEAST_CPUS <= part < wanted)})
    fitting = (size for size in reversed(sizes) if _fits(resources, workers, size, gpus, overhead))
    return next(fitting, wanted)


def _fits(
    resources: ClusterResources,
    workers: int,
    cpus: float,
    gpus: float,
    overhead: float,
    trials: int = 1,
) -> bool:
    """Whether one trial's workers fit wherever Ray puts the processes of that many trials."""
    places = [_copies(node.cpus, node.gpus, cpus, gpus) for node in resources.nodes]
    if overhead == 0.0:
        return sum(places) >= workers
    taken = trials * overhead
    lost = [
        place - _copies(node.cpus - min(taken, node.cpus), node.gpus, cpus, gpus)
        for place, node in zip(places, resources.nodes, strict=True)
    ]
    whole = trials * overhead + workers * cpus <= resources.cpus + _EPSILON
    return whole and sum(places) - max(lost) >= workers


def _fitting_trials(
    resources: ClusterResources, workers: int, cpus: float, gpus: float, overhead: float
) -> int:
    """Return how many trials train at once; at least one, which is known to fit."""
    places = sum(_copies(node.cpus, node.gpus, cpus, gpus) for node in resources.nodes)
    by_cpu = int((resources.cpus + _EPSILON) / (workers * cpus + overhead))
    trials = max(1, min(places // workers, by_cpu))
    # A trial whose workers wait must not keep the others' workers from their places.
    while trials > 1 and not _fits(resources, workers, cpus, gpus, overhead, trials):
        trials -= 1
    return trials


def _copies(free_cpus: float, free_gpus: float, cpus: float, gpus: float) -> int:
    by_cpu = int((free_cpus + _EPSILON) / cpus)
    by_gpu = int((free_gpus + _EPSILON) / gpus) if gpus > 0 else by_cpu
    return max(0, min(by_cpu, by_gpu))


def _rounded_down(cpus: float) -> float:
    return math.floor(cpus * 10_000 + 1e-3) / 10_000


def _too_many(
    resources: ClusterResources, workers: int, cpus: float, gpus: float, overhead: float
) -> str:
    wanted = {"CPU": workers * cpus + overhead, "GPU": workers * gpus}
    there = {"CPU": resources.cpus, "GPU": resources.gpus}
    needed = " and ".join(counted(wanted[kind], kind) for kind in wanted if wanted[kind] > 0)
    lacking = {kind: wanted[kind] - there[kind] for kind in wanted}
    missing = [counted(lack, kind) for kind, lack in lacking.items() if lack > _EPSILON]
    if missing:
        what = f"missing: {' and '.join(missing)}"
    else:
        what = "no way to place them on its nodes leaves room for all"
    return (
        f"training.workers={workers} needs {needed} at once, but the cluster has {resources} "
        f"({what}): ask for fewer workers, for less of training.cpus_per_worker or "
        "training.gpus_per_worker, or for a larger cluster."
    )


def _memory(resources: ClusterResources, cpus: float, gpus: float) -> int:
    if gpus > 0:
        return int(resources.gpu_memory * min(1.0, gpus) * 0.8)
    return _host_memory(resources, cpus)


def _host_memory(resources: ClusterResources, cpus: float) -> int:
    shares = [
        node.memory * min(1.0, cpus / node.cpus)
        for node in resources.nodes
        if node.cpus + _EPSILON >= cpus
    ]
    return int(_USABLE_MEMORY * min(shares, default=0.0))
