"""What a cluster offers."""

from __future__ import annotations

from dataclasses import dataclass


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
        gpus = counted(self.gpus, "GPU") if self.gpus else "no GPU"
        return f"{counted(self.cpus, 'CPU')} and {gpus} on {count} node{'s' * (count != 1)}"


def counted(number: float, kind: str) -> str:
    """Return a number with what it counts, in the plural where it is not 1."""
    return f"{number:.4g} {kind}{'s' * (f'{number:.4g}' != '1')}"
