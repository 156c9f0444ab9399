"""How a cluster's processors are shared between decoding images and running the trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from safe_ray.errors import InputError

# More threads than this gain little for one small batch; more actors do.
_MAX_THREADS = 8
# On processors the trunk takes most of the time, and decoding the rest.
_TRUNK_SHARE = 0.75
# An actor takes some seconds to start; those for fewer images than this are done sooner by another.
_ROWS_PER_ACTOR = 64
_BYTES_PER_FILE = 32 * 2**20
_ROWS_PER_FILE = 256


@dataclass(frozen=True)
class ActorPlan:
    """The actor pool that runs the trunk, and the tasks that decode for it.

    Attributes:
        actors: how many actors.
        cpus: logical CPUs an actor holds.
        gpus: GPUs an actor holds, 0 or 1.
        threads: torch threads of an actor.
        decode_cpus: logical CPUs of one decoding task.
    """

    actors: int
    cpus: float
    gpus: int
    threads: int
    decode_cpus: float


def plan_actors(
    nodes: Sequence[Mapping[str, float]], actors: int | Literal["auto"] = "auto"
) -> ActorPlan:
    """Share out the cluster so that the actors and at least one decoding task fit at once.

    With GPUs, an actor has one each. Without, a node's cores are dealt to actors, and their logical
    shares leave a quarter of the node to decoding.

    Args:
        nodes: the resources of each live node, such as `{"CPU": 8.0, "GPU": 1.0}`.
        actors: how many actors; `auto` fills the cluster.

    Raises:
        InputError: more actors than fit.
    """
    gpu_nodes = [node for node in nodes if holds_trunk_on_gpu(node)]
    gpus = sum(int(node["GPU"]) for node in gpu_nodes)
    if gpus:
        _check(actors, gpus, f"its {gpus} GPUs hold one each")
        cores = min(node["CPU"] / int(node["GPU"]) for node in gpu_nodes)
        return ActorPlan(
            actors=gpus if actors == "auto" else actors,
            cpus=min(1.0, cores / 2),
            gpus=1,
            threads=max(1, int(cores / 2)),
            decode_cpus=min(1.0, cores / 2),
        )
    cores_of = [node["CPU"] for node in nodes if node.get("CPU", 0) > 0]
    if not cores_of:
        raise InputError(
            "The Ray cluster has no CPU to decode images with: start it with --num-cpus of 1 or "
            "more."
        )
    smallest = min(cores_of)
    most = sum(max(1, int(cores)) for cores in cores_of)
    _check(actors, most, f"it has {sum(cores_of):g} CPUs")
    if actors == "auto":
        threads = min(_MAX_THREADS, max(1, int(smallest // 4)))
        actors = sum(max(1, int(cores // threads)) for cores in cores_of)
    else:
        threads = max(1, min(int(smallest), most // actors))
    return ActorPlan(
        actors=actors,
        cpus=_TRUNK_SHARE * threads if smallest >= 2 else smallest / 2,
        gpus=0,
        threads=threads,
        decode_cpus=0.5 if smallest >= 2 else smallest / 4,
    )


def holds_trunk_on_gpu(node: Mapping[str, float]) -> bool:
    """Whether a node, given by its resources, has a GPU for the trunk and a CPU to feed it."""
    return node.get("GPU", 0) >= 1 and node.get("CPU", 0) > 0


def plan_batch_size(image_size: int, gpu: bool) -> int:
    """Images that one forward pass of the trunk takes, fewer the larger they are.

    A map's last bit depends on this number: another one here changes every result a little.
    """
    most, least = (256, 16) if gpu else (64, 4)
    size = most
    while size > least and size * image_size**2 > most * 224**2:
        size //= 2
    return size


def useful_actors(actors: int, rows: int) -> int:
    """Return how many of so many actors are worth starting for so many images."""
    return max(1, min(actors, rows // _ROWS_PER_ACTOR))


def plan_rows_per_file(rows: int, bytes_per_row: int, batch_size: int, actors: int) -> int:
    """Rows of a part: whole batches, some 32 MiB, and a like share for every actor.

    The actors finish together when their number divides the number of parts.
    """
    largest = max(1, min(_ROWS_PER_FILE, _BYTES_PER_FILE // bytes_per_row, rows))
    parts = -(-rows // max(largest, batch_size))
    parts = -(-parts // actors) * actors
    share = -(-rows // parts)
    return max(1, -(-share // batch_size)) * batch_size


def _check(actors: int | Literal["auto"], most: int, reason: str) -> None:
    if actors != "auto" and not 1 <= actors <= most:
        raise InputError(
            f"features.actors={actors} does not fit this Ray cluster ({reason}): give a number "
            f"from 1 to {most}, or auto."
        )
