"""What a cluster offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safe_ray.specs import NodeShape

_GIBIBYTE = 2**30
# What is planned with where nobody has said, and no node of the shape is there to say it.
_ASSUMED_MEMORY_PER_CPU = 2 * _GIBIBYTE


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
        nodes: those that have a CPU and may do work; the ones, too, that an autoscaler may bring.
        gpu_memory: bytes of their smallest GPU.
        remark: a sentence about nodes that may not; "" if there are none.
        coming: how many of the nodes are not there yet.
    """

    nodes: tuple[Node, ...]
    gpu_memory: float = 0.0
    remark: str = ""
    coming: int = 0

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
        gpus = counted(self.gpus, "GPU") if self.gpus else "no GPU"
        there = f"{counted(self.cpus, 'CPU')} and {gpus} on {count} node{'s' * (count != 1)}"
        return f"{there}, {self.coming} of them to come" if self.coming else there


def up_to_ceiling(there: Sequence[Node], ceiling: Sequence[NodeShape]) -> tuple[Node, ...]:
    """Return the nodes that there are, followed by those that may still come.

    A node that is there takes a place of the first shape with its CPUs and GPUs. One that is like
    no shape, such as a head that works too, stands beside the ceiling.

    Args:
        there: nodes that are there.
        ceiling: at most how many there may be of which shape.
    """
    unplaced = list(there)
    coming: list[Node] = []
    for shape in ceiling:
        alike = [node for node in unplaced if is_like(node, shape)][: shape.nodes]
        for node in alike:
            unplaced.remove(node)
        known = min((node.memory for node in there if is_like(node, shape)), default=0.0)
        memory = shape.memory or known or _ASSUMED_MEMORY_PER_CPU * shape.cpus
        coming += [Node(shape.cpus, shape.gpus, memory)] * (shape.nodes - len(alike))
    return (*there, *coming)


def is_like(node: Node, shape: NodeShape) -> bool:
    """Whether a node has the CPUs and GPUs of a shape."""
    return abs(node.cpus - shape.cpus) < 1e-3 and node.gpus == shape.gpus


def counted(number: float, kind: str) -> str:
    """Return a number with what it counts, in the plural where it is not 1."""
    return f"{number:.4g} {kind}{'s' * (f'{number:.4g}' != '1')}"
