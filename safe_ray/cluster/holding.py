"""One node of each shape is there before the work is planned.

What a node offers, which GPUs it has and whether it sees the storage is asked of nodes, and of a
shape with no node there is none to ask. A placement group of a whole node's size makes the
autoscaler bring one, and keeps it from being taken away as idle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from safe_ray.cluster.resources import Node, is_like
from safe_ray.specs import NodeShape

# Once there is a node to begin with, the other shapes may not be to be had at present.
_OTHERS_SECONDS = 90.0
_POLL_SECONDS = 0.5


class Hold:
    """Placement groups that hold nodes of which there were none."""

    def __init__(self) -> None:
        self._groups: list[Any] = []

    def one_of_each(
        self,
        ceiling: Sequence[NodeShape],
        there: Callable[[], Sequence[Node]],
        others_seconds: float = _OTHERS_SECONDS,
    ) -> None:
        """Wait for a node of each shape that has none.

        Without end for the first that can do the work, which is one with a GPU where any shape has
        some. After that the other shapes have a while.

        Args:
            ceiling: the shapes.
            there: returns the nodes that are there now.
            others_seconds: how long that while is.
        """
        from ray.util.placement_group import placement_group

        missing = [s for s in ceiling if not any(is_like(node, s) for node in there())]
        self._groups = [
            placement_group([{"CPU": shape.cpus, **({"GPU": shape.gpus} if shape.gpus else {})}])
            for shape in dict.fromkeys(missing)
        ]
        on_gpus = any(shape.gpus for shape in ceiling)
        deadline: float | None = None
        while not all(map(_is_ready, self._groups)):
            if any(node.cpus > 0 and (node.gpus >= 1 or not on_gpus) for node in there()):
                deadline = deadline or time.monotonic() + others_seconds
                if time.monotonic() >= deadline:
                    break
            time.sleep(_POLL_SECONDS)
        self._let_go([group for group in self._groups if not _is_ready(group)])

    def release(self) -> None:
        """Let go of all nodes."""
        self._let_go(list(self._groups))

    def _let_go(self, groups: Sequence[Any]) -> None:
        from ray.util.placement_group import remove_placement_group

        for group in groups:
            remove_placement_group(group)
            self._groups.remove(group)


def _is_ready(group: Any) -> bool:
    return bool(group.wait(0))
