"""The nodes of the cluster that do the work, and what each of them says about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from safe_ray.cluster.resources import ClusterResources, Node
from safe_ray.errors import InputError
from safe_ray.visibility import Sight, look

# Whether a task that reserves no GPU is kept from seeing any.
_HIDES_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
_Answer = TypeVar("_Answer")

# Ids of the nodes that may do work, where these are not all. It belongs to the cluster that this
# process has joined, and of those there is one at a time.
_only: frozenset[str] = frozenset()


def choose_nodes(folders: Sequence[Path]) -> ClusterResources:
    """Decide which nodes of the cluster do the work, and return what they offer.

    Raises:
        InputError: no node that has a CPU sees the folders, or Ray offers GPUs that torch does not
            find.
    """
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
