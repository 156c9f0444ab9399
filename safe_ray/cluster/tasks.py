"""Work of the driver's own that goes to nodes with CPUs, where the driver's node has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from safe_ray.cluster.nodes import beacon, label_selector, leave_out, planned_nodes
from safe_ray.errors import BlindNodeError, InputError
from safe_ray.visibility import check_sight

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

# Pieces of work that wait for a CPU beside the ones that have one: enough to make a cluster grow.
_AHEAD = 2
_MOST_CPUS = 4.0
_BLIND_NODES = 5


def run_on_node(work: Callable[..., _Answer], *arguments: Any, gpus: int = 0) -> _Answer:
    """Call a function on a node that sees the storage, and return what it returns.

    Args:
        work: the function; it finds its threads in `OMP_NUM_THREADS`.
        arguments: of the function.
        gpus: how many GPUs it needs.

    Raises:
        InputError: the function raised it, or nodes that join see no storage.
    """
    import ray

    sizes = [node.cpus for node in planned_nodes() if node.gpus >= gpus]
    cpus = 1.0 if gpus else min([_MOST_CPUS, *sizes])
    for attempt in range(_BLIND_NODES + 1):
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, label_selector=label_selector())(_run)
        try:
            answer: _Answer = ray.get(task.remote(beacon(), work, arguments))
            return answer
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BlindNodeError) and attempt < _BLIND_NODES:
                leave_out(cause.node)
            elif isinstance(cause, InputError):
                raise cause from None
            else:
                raise
    raise AssertionError("the last attempt returns or raises")


def _run(token: dict[str, Any] | None, work: Callable[..., _Answer], arguments: Any) -> _Answer:
    check_sight(token)
    return work(*arguments)


def spread(work: Callable[[_Item], _Answer], items: Iterable[_Item]) -> Iterator[_Answer]:
    """Call a function with each item, on any nodes with a CPU, and yield the answers in order.

    A node that dies costs nothing but time.
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=-1, label_selector=label_selector())(work)
    at_once = _AHEAD + int(sum(node.cpus for node in planned_nodes()))
    waiting: list[Any] = []
    for item in items:
        waiting.append(task.remote(item))
        if len(waiting) >= at_once:
            yield ray.get(waiting.pop(0))
    for answer in waiting:
        yield ray.get(answer)
