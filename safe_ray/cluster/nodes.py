"""The nodes of the cluster that do the work, and what each of them says about itself."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from safe_ray.cluster.holding import Hold
from safe_ray.cluster.resources import ClusterResources, Node, is_like, up_to_ceiling
from safe_ray.errors import InputError
from safe_ray.specs import NodeShape
from safe_ray.visibility import Beacon, Sight, light, look, put_out

# Whether a task that reserves no GPU is kept from seeing any.
_HIDES_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
_Answer = TypeVar("_Answer")


class _Joined:
    """What this process knows of the cluster that it has joined; of those there is one at a time.

    Attributes:
        blind: ids of the nodes that may do no work.
        ceiling: what an autoscaler may bring.
        beacon: by which processes on nodes that join later know that they see the storage.
        hold: keeps the nodes that were waited for until the work is planned.
    """

    def __init__(self, ceiling: Sequence[NodeShape] = ()) -> None:
        self.blind: frozenset[str] = frozenset()
        self.ceiling = tuple(ceiling)
        self.beacon: Beacon | None = None
        self.hold = Hold()


_joined = _Joined()


def expect(ceiling: Sequence[NodeShape]) -> None:
    """Let what an autoscaler may bring count, before its nodes are chosen."""
    _joined.ceiling = tuple(ceiling)


def choose_nodes(folders: Sequence[Path], ceiling: Sequence[NodeShape] = ()) -> ClusterResources:
    """Decide which nodes of the cluster do the work, and return what they offer.

    With a ceiling, one node of each shape is waited for, so that what all of its like offer and see
    is known before there is work. They are held until `release_nodes`.

    Args:
        folders: what all work reads and writes.
        ceiling: what an autoscaler may bring; empty if what is there counts.

    Raises:
        InputError: no node that has a CPU sees the folders, or Ray offers GPUs that torch does not
            find.
    """
    global _joined
    _forget()
    _joined = _Joined(ceiling)
    if ceiling:
        _joined.hold.one_of_each(ceiling, lambda: [_node(entry) for entry in working_nodes()])
    nodes, remark = working_nodes(), ""
    if folders and (len(nodes) > 1 or ceiling):
        _joined.beacon = light(folders)
        atexit.register(_forget)
        remark = _leave_out_blind(look(_joined.beacon, nodes), folders[0])
    return _offered(remark)


def _leave_out_blind(sight: Sight, folder: Path) -> str:
    """Leave out the nodes that do not see the storage, and their shapes, and say so."""
    if not sight.blind:
        return ""
    seeing = [_node(entry) for entry in sight.seeing if _has_cpu(entry)]
    if not seeing:
        raise InputError(
            f"No node of the Ray cluster that has a CPU sees {folder} as this process does "
            f"({_reasons(sight)}): name a folder on storage that all nodes share with "
            "storage=<folder> or SAFE_RAY_STORAGE."
        )
    _joined.blind = frozenset(entry["NodeID"] for entry, _ in sight.blind)
    unseen = [_node(entry) for entry, _ in sight.blind]
    _joined.ceiling = tuple(
        shape
        for shape in _joined.ceiling
        if any(is_like(node, shape) for node in seeing)
        or not any(is_like(node, shape) for node in unseen)
    )
    count = len(sight.blind) + len(sight.seeing)
    return (
        f"{len(sight.blind)} of {count} nodes do not see {folder} as this one does "
        f"({_reasons(sight)}), and get no work; they would with a folder that all nodes share "
        "(storage=<folder> or SAFE_RAY_STORAGE)."
    )


def _reasons(sight: Sight, shown: int = 3) -> str:
    some = [f"{node['NodeManagerAddress']}: {reason}" for node, reason in sight.blind[:shown]]
    more = len(sight.blind) - shown
    return "; ".join([*some, *([f"and {more} more"] if more > 0 else [])])


def leave_out(node: str) -> None:
    """Keep all further work from a node, given by Ray's id of it."""
    _joined.blind |= {node}


def release_nodes() -> None:
    """Let go of the nodes that were waited for: from now on the work itself keeps them."""
    _joined.hold.release()


def _forget() -> None:
    if _joined.beacon is not None:
        put_out(_joined.beacon)
        _joined.beacon = None


def beacon() -> dict[str, Any] | None:
    """Return what work gives to `visibility.check_sight`, as JSON; None on a single machine."""
    return None if _joined.beacon is None else _joined.beacon.to_json()


def is_elastic() -> bool:
    """Whether an autoscaler may bring nodes."""
    return bool(_joined.ceiling)


def working_nodes() -> list[dict[str, Any]]:
    """Return the entries of `ray.nodes()` of the live nodes that may do work."""
    import ray

    return [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in _joined.blind]


def planned_nodes() -> tuple[Node, ...]:
    """Return the nodes to plan for: those that may do work, and those that may still come."""
    there = [_node(entry) for entry in working_nodes() if _has_cpu(entry)]
    return up_to_ceiling(there, _joined.ceiling)


def label_selector() -> dict[str, str]:
    """Return what keeps tasks, actors and placement groups off the nodes that may do no work.

    It is empty if all may. It says nothing of nodes that join later.
    """
    return {"ray.io/node-id": f"!in({','.join(sorted(_joined.blind))})"} if _joined.blind else {}


def ray_is_started() -> bool:
    """Whether this process has a Ray; asking does not import it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def works_here() -> bool:
    """Whether this process's own node offers CPUs, so that work of this process's has some."""
    if not ray_is_started():
        return True
    import ray

    here = ray.get_runtime_context().get_node_id()
    return any(entry["NodeID"] == here and _has_cpu(entry) for entry in ray.nodes())


def _has_cpu(entry: Mapping[str, Any]) -> bool:
    return bool(entry["Resources"].get("CPU", 0.0) > 0)


def _node(entry: Mapping[str, Any]) -> Node:
    offered = entry["Resources"]
    return Node(offered.get("CPU", 0.0), offered.get("GPU", 0.0), offered.get("memory", 0.0))


def _offered(remark: str) -> ClusterResources:
    useful = [entry for entry in working_nodes() if _has_cpu(entry)]
    with_gpus = [node for node in useful if node["Resources"].get("GPU", 0.0) > 0]
    memories = ask_nodes(_gpu_memory, with_gpus)
    for node, memory in zip(with_gpus, memories, strict=True):
        if not memory:
            raise InputError(
                f"Ray offers GPUs on the node {node['NodeManagerAddress']}, but torch finds none "
                "there: install a torch that is built for them on every node, or start that node "
                "with --num-gpus=0."
            )
    nodes = up_to_ceiling([_node(entry) for entry in useful], _joined.ceiling)
    # A trial may be placed on any of them.
    smallest = float(min(memories, default=0))
    return ClusterResources(nodes, smallest, remark, len(nodes) - len(useful))


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
