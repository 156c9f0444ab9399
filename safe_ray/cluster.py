"""The Ray cluster: joining or starting one, and sharing it out among trials."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from safe_ray import job
from safe_ray.errors import InputError
from safe_ray.interruption import treat_sigterm_as_interrupt
from safe_ray.visibility import Sight, look

# Ray's placement works in steps of 1/10000; what is below does not exist.
_EPSILON = 1e-6
# The process of a trial whose workers are elsewhere, and the reading of their shards.
_NESTED_TRIAL_CPUS = 0.1
_READING_CPUS = 0.2
# The rest of a node's memory is for Ray's object store, the store's page cache and the driver.
_USABLE_MEMORY = 0.5
_LEAST_CPUS = 0.1
_MOST_CPUS_BESIDE_A_GPU = 8.0
_REACH_SECONDS = 5.0
_LOCAL = "local"
# Whether a task that reserves no GPU is kept from seeing any.
_HIDES_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"

Auto = Literal["auto"]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Node:
    """What one live node offers: logical CPUs, GPUs and bytes of memory."""

    cpus: float
    gpus: float
    memory: float


@dataclass(frozen=True)
class ClusterResources:
    """What a cluster offers.

    Attributes:
        nodes: those that have a CPU and may do work.
        gpu_memory: bytes of their smallest GPU.
        remark: a sentence about nodes that may not; "" if there are none.
    """

    nodes: tuple[Node, ...]
    gpu_memory: float = 0.0
    remark: str = ""

    @property
    def cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        count = len(self.nodes)
        gpus = _counted(self.gpus, "GPU") if self.gpus else "no GPU"
        return f"{_counted(self.cpus, 'CPU')} and {gpus} on {count} node{'s' * (count != 1)}"


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
    if resources.cpus < _EPSILON:
        raise InputError(
            "The Ray cluster has no CPU: start its nodes with --num-cpus of 1 or more."
        )
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
    needed = " and ".join(_counted(wanted[kind], kind) for kind in wanted if wanted[kind] > 0)
    lacking = {kind: wanted[kind] - there[kind] for kind in wanted}
    missing = [_counted(lack, kind) for kind, lack in lacking.items() if lack > _EPSILON]
    if missing:
        what = f"missing: {' and '.join(missing)}"
    else:
        what = "no way to place them on its nodes leaves room for all"
    return (
        f"training.workers={workers} needs {needed} at once, but the cluster has {resources} "
        f"({what}): ask for fewer workers, for less of training.cpus_per_worker or "
        "training.gpus_per_worker, or for a larger cluster."
    )


def _counted(number: float, kind: str) -> str:
    return f"{number:.4g} {kind}{'s' * (f'{number:.4g}' != '1')}"


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


def is_local(address: str | None) -> bool:
    """Whether `connect` would start a Ray of its own rather than join a running cluster."""
    return _address(address) == _LOCAL


def _address(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or _LOCAL


def connect(
    address: str | None, num_cpus: int | None, folders: Sequence[Path] = ()
) -> ClusterResources:
    """Join a running Ray cluster, or start a local one, and return what it offers.

    Args:
        address: of a running cluster; None takes `RAY_ADDRESS`, and starts a local Ray without it.
        num_cpus: logical CPUs of a local Ray; None is all of this machine's.
        folders: what all work reads and writes. Nodes that do not see them as this process does get
            no work (see `working_nodes` and `label_selector`).

    Raises:
        InputError: there is no cluster at the address, none can be started here, or none of its
            nodes that have a CPU sees the folders.
    """
    resources, _ = connect_beside(address, num_cpus, lambda: None, folders)
    return resources


def connect_beside(
    address: str | None,
    num_cpus: int | None,
    work: Callable[[], _Answer],
    folders: Sequence[Path] = (),
) -> tuple[ClusterResources, _Answer]:
    """Do what `connect` does, and `work` in a thread meanwhile; return what both return.

    Starting a local Ray is mostly waiting for its processes. It is done by the thread that calls,
    since they end with the thread that started them. The work may import whatever `ray.init` does
    not import: two threads that import one package can meet it half made. What it writes on
    standard error is lost.

    Raises:
        InputError: as `connect` does. What the work raises is raised when Ray has started.
    """
    address = _address(address)
    # The environment is set while no other thread reads it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's core writes its worries about its own internals straight to the terminal.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    joining = address != _LOCAL
    if joining:
        _check_address(address)
    authenticate(os.environ, joining)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    if not ray.is_initialized():
        _reread_environment()
    with ThreadPoolExecutor(1, "beside-ray") as pool:
        working = pool.submit(work)
        _initialise(address, num_cpus)
        resources = _at_work(folders)
        return resources, working.result()


def _initialise(address: str, num_cpus: int | None) -> None:
    import ray

    if not ray.is_initialized():
        joining = address != _LOCAL
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            "runtime_env": _runtime_env(joining),
        }
        try:
            with _muted_stderr():
                if joining:
                    ray.init(address, **common)
                else:
                    ray.init(_LOCAL, num_cpus=num_cpus, include_dashboard=False, **common)
        except (Exception, SystemExit) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            if joining:
                raise InputError(_nobody_at(address, reason)) from error
            raise InputError(
                f"A local Ray could not be started ({reason}): give it fewer CPUs with "
                "cluster.num_cpus, or name a running cluster with cluster.address."
            ) from error
        treat_sigterm_as_interrupt()


# Ids of the nodes that may do work, where these are not all. It belongs to the cluster that this
# process has joined, and of those there is one at a time.
_only: frozenset[str] = frozenset()


def _at_work(folders: Sequence[Path]) -> ClusterResources:
    """Decide which nodes of the cluster do the work, and return what they offer."""
    global _only
    _only = frozenset()
    nodes, remark = working_nodes(), ""
    if folders and len(nodes) > 1:
        sight = look(folders, nodes)
        useful = any(node["Resources"].get("CPU", 0.0) > 0 for node in sight.seeing)
        if sight.blind and not useful:
            raise InputError(
                f"No node of the Ray cluster that has a CPU sees {folders[0]} as this process does "
                f"({_reasons(sight)}): name a folder on storage that all nodes share with "
                "storage=<folder> or SAFE_RAY_STORAGE."
            )
        if sight.blind:
            _only = frozenset(node["NodeID"] for node in sight.seeing)
            remark = (
                f"{len(sight.blind)} of {len(nodes)} nodes do not see {folders[0]} as this one "
                f"does ({_reasons(sight)}), and get no work; they would with a folder that all "
                "nodes share (storage=<folder> or SAFE_RAY_STORAGE)."
            )
    return replace(_offered(working_nodes()), remark=remark)


def _reasons(sight: Sight, shown: int = 3) -> str:
    some = [f"{address}: {reason}" for address, reason in sight.blind[:shown]]
    more = len(sight.blind) - shown
    return "; ".join([*some, *([f"and {more} more"] if more > 0 else [])])


def working_nodes() -> list[dict[str, Any]]:
    """Return the entries of `ray.nodes()` of the live nodes that may do work."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in nodes if not _only or node["NodeID"] in _only]


def label_selector() -> dict[str, str]:
    """Return what keeps tasks, actors and placement groups on the nodes that may do work.

    It is empty if all may, those too that join later.
    """
    return {"ray.io/node-id": f"in({','.join(sorted(_only))})"} if _only else {}


def _check_address(address: str) -> None:
    """Try the address once; Ray itself would try for two minutes, and then end the process."""
    if "://" in address:
        raise InputError(
            f"The Ray address {address} is not a cluster's own: write host:6379 in "
            "cluster.address or RAY_ADDRESS (for a dashboard's address there is "
            "`ray job submit --address`)."
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        if address != "auto":
            raise InputError(f"The Ray address {address!r} has no port: write host:6379, or auto.")
        return
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"The Ray address {address!r} has no port {port!r}: write host:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise InputError(_nobody_at(address, error.strerror or str(error))) from error


def _nobody_at(address: str, reason: str) -> str:
    return (
        f"There is no Ray cluster to join at {address} ({reason}): start one, correct "
        "cluster.address or RAY_ADDRESS, or leave both out to start a local one."
    )


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Keep what Ray's core writes to the descriptor itself, past Python, off the terminal.

    It announces the log level that was set for it. Failures still arrive as exceptions.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def authenticate(environment: MutableMapping[str, str], joining: bool) -> None:
    """Decide how processes prove to Ray that they belong, unless `RAY_AUTH_MODE` says it already.

    Left alone, Ray from 2.59 on writes a token into the home folder, which changes how clusters
    that are started later behave. A local Ray listens on the network, so it gets a token of its
    own that ends with it. A running cluster expects a token exactly where Ray looks for one.

    Args:
        environment: the process's environment variables, changed in place.
        joining: whether a running cluster is joined.
    """
    if "RAY_AUTH_MODE" in environment:
        return
    token_file = environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    has_token = "RAY_AUTH_TOKEN" in environment or Path(token_file).expanduser().is_file()
    if not joining and not has_token:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment["RAY_AUTH_MODE"] = "token" if has_token or not joining else "disabled"


def _reread_environment() -> None:
    """Let Ray's core, which reads its settings once, when it is first imported, read them again.

    Ray does the same when it turns authentication on by itself.
    """
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def _runtime_env(joining: bool) -> dict[str, Any]:
    """Return the runtime environment of all workers.

    A submitted job finds this package where it was installed, or brings it along in its working
    folder; a driver that joins from outside sends it. Ray refuses a variable that a job's own
    environment sets already.
    """
    wanted = {"RAY_TRAIN_V2_ENABLED": "1"}
    given = job.runtime_env().get("env_vars") or {}
    environment: dict[str, Any] = {
        "env_vars": {name: value for name, value in wanted.items() if name not in given}
    }
    if joining and not job.is_submitted():
        environment["py_modules"] = [str(Path(__file__).resolve().parent)]
    return environment


def _offered(nodes: Sequence[Mapping[str, Any]]) -> ClusterResources:
    useful = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0.0) > 0]
    offered = tuple(
        Node(r.get("CPU", 0.0), r.get("GPU", 0.0), r.get("memory", 0.0))
        for r in (node["Resources"] for node in useful)
    )
    with_gpus = [node for node in useful if node["Resources"].get("GPU", 0.0) > 0]
    memories = ask_nodes(_gpu_memory, with_gpus)
    for node, memory in zip(with_gpus, memories, strict=True):
        if not memory:
            raise InputError(
                f"Ray offers GPUs on the node {node['NodeManagerAddress']}, but torch finds none "
                "there: install a torch that is built for them on every node, or start that node "
                "with --num-gpus=0."
            )
    # A trial may be placed on any of them.
    return ClusterResources(offered, float(min(memories, default=0)))


def ask_nodes(ask: Callable[[], _Answer], nodes: Sequence[Mapping[str, Any]]) -> list[_Answer]:
    """Call a function once on each of some nodes, at the same time.

    It sees all GPUs of its node and reserves nothing, so that it need not wait for other work.

    Args:
        ask: the function.
        nodes: entries of `ray.nodes()`; Ray is not used if there are none.
    """
    if not nodes:
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, runtime_env={"env_vars": {_HIDES_GPUS: "0"}})(ask)
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    return ray.get([task.options(scheduling_strategy=place).remote() for place in places])


def _gpu_memory() -> int:
    """Return the bytes of the smallest GPU here; 0 if torch finds none."""
    import torch

    devices = range(torch.cuda.device_count())
    memories = (int(torch.cuda.get_device_properties(i).total_memory) for i in devices)
    return min(memories, default=0)
