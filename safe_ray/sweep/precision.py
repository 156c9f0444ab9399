"""Whether a sweep's processors are made for the arithmetic that is asked of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_ray.cluster import ask_nodes, planned_nodes, working_nodes
from safe_ray.config import SweepConfig
from safe_ray.devices import cpu_capabilities, has_instructions
from safe_ray.errors import DamagedFileError, InputError
from safe_ray.features.extract import Precision
from safe_ray.features.plan import holds_trunk_on_gpu
from safe_ray.training.facts import TaskFacts


def precision_of_first_task(sweep: Path) -> Precision | None:
    """Return the arithmetic of the dense maps of the sweep's tasks; None if it has none yet."""
    for folder in sorted(sweep.glob("tasks/*")):
        with contextlib.suppress(DamagedFileError, InputError):
            precision: Precision = TaskFacts.load(folder).store_key["precision"]
            return precision
    return None


def check_this_machine(config: SweepConfig) -> None:
    """Check what the configuration asks of this machine, before a Ray is started on it.

    Raises:
        InputError: the CPU has no instructions for it, there is no GPU, and
            `cluster.slow_precision` is off.
    """
    import torch

    if not torch.cuda.is_available():
        trunk = config.features.precision
        asked = {"features.precision": trunk, "training.precision": config.training.precision}
        _check(config, asked, "this machine", cpu_capabilities())


def check_precisions(config: SweepConfig, trunk: str, gpus_per_worker: float | None) -> None:
    """Check that no CPU of the cluster is asked for arithmetic that it can only emulate.

    Ray must have been started.

    Args:
        config: the sweep.
        trunk: the arithmetic of its dense maps, `auto` resolved.
        gpus_per_worker: what a worker trains on; None if nothing is trained.

    Raises:
        InputError: a node that may compute on its CPU has no instructions for a precision, and
            `cluster.slow_precision` is off.
    """
    nodes = [node for node in working_nodes() if node["Resources"].get("CPU", 0) > 0]
    on_cpu = {}
    planned = ({"CPU": node.cpus, "GPU": node.gpus} for node in planned_nodes())
    if not any(map(holds_trunk_on_gpu, planned)):
        on_cpu["features.precision"] = trunk
    if gpus_per_worker == 0:
        on_cpu["training.precision"] = config.training.precision
    if set(on_cpu.values()) <= {"fp32"}:
        return
    for node, capabilities in zip(nodes, _capabilities(nodes), strict=True):
        _check(config, on_cpu, f"the node {node['NodeManagerAddress']}", capabilities)


def _capabilities(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    """Return what each node's CPU has; this process's own node need not be asked by way of Ray."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in nodes if node["NodeID"] != here]
    asked = iter(ask_nodes(cpu_capabilities, others))
    return [cpu_capabilities() if n["NodeID"] == here else next(asked) for n in nodes]


def _check(
    config: SweepConfig,
    asked: Mapping[str, str],
    where: str,
    capabilities: Mapping[str, Any] | None,
) -> None:
    """Refuse the first setting, given with its precision, that a CPU has no instructions for."""
    if config.cluster.slow_precision:
        return
    slow = f"the CPU of {where} has no instructions, so that it is many times slower than fp32"
    insist = "insist with cluster.slow_precision=true"
    for setting, precision in asked.items():
        if has_instructions(precision, capabilities):
            continue
        if setting == "features.precision" and config.features.precision == "auto":
            raise InputError(
                f"The dense maps of the sweep {config.sweep!r} are in {precision}, for which "
                f"{slow}: go on with it where there are GPUs, or {insist}."
            )
        raise InputError(
            f"{setting}={precision} is arithmetic for which {slow}: choose fp32, or {insist}."
        )
