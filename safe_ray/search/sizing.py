"""How many candidates a bank may hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safe_ray.backbones.openclip import Backbone
    from safe_ray.training.facts import TaskFacts

# Weights, gradients and two AdamW moments, in float32; and once more while a bank is restacked.
_BYTES_PER_PARAMETER = 4 * 5
# The first bank is quasi-random; at least as many as this follow it, so that TPE has its say.
_LATER_BANKS = 3


@dataclass(frozen=True)
class BankFootprint:
    """What a bank needs of a device's memory.

    Attributes:
        parameters: numbers in one head.
        activation_bytes: what one head keeps between a step's forward and backward pass.
        members: members of the bank for each candidate: 1, and 1 more a fold.
        maps: dense maps of the largest task that a worker keeps on the device.
        map_bytes: bytes of one dense map.
    """

    parameters: int
    activation_bytes: int
    members: int
    maps: int
    map_bytes: int

    @staticmethod
    def of(tasks: Sequence[TaskFacts], backbone: Backbone, batch_size: int) -> BankFootprint:
        """Return the footprint of a bank of any of some tasks, which share a backbone.

        Args:
            tasks: at least one.
            backbone: its pooling is what is trained.
            batch_size: support samples a step.
        """
        folds = max(task.folds if task.selection == "cross" else 0 for task in tasks)
        return BankFootprint(
            parameters=sum(tensor.numel() for tensor in backbone.state.values()),
            activation_bytes=backbone.pooling.activation_bytes(backbone.state, batch_size),
            members=1 + folds,
            maps=max(task.maps_in_memory for task in tasks),
            map_bytes=2 * backbone.tokens * backbone.width,
        )

    @property
    def maps_bytes(self) -> int:
        """Bytes of the support maps, which the candidates share."""
        return self.maps * self.map_bytes

    @property
    def candidate_bytes(self) -> int:
        """Bytes that one more candidate takes."""
        return self.members * (_BYTES_PER_PARAMETER * self.parameters + self.activation_bytes)


def automatic_bank_size(candidates: int, footprint: BankFootprint, memory: int) -> int:
    """Return the size of a bank for `search.bank=auto`.

    As many candidates as the memory holds, but no more than a quarter of a task's candidates: one
    bank for all would be quasi-random throughout, and the estimator would never be asked.

    Args:
        candidates: of each task.
        footprint: what a bank needs.
        memory: bytes of the device that a trial may use.
    """
    fitting = (memory - footprint.maps_bytes) // footprint.candidate_bytes
    wanted = -(-candidates // (1 + _LATER_BANKS))
    return int(max(1, min(fitting, wanted)))


def bank_sizes(candidates: Sequence[int], bank: int) -> tuple[int, ...]:
    """Return how many candidates each bank of a task has.

    A sweep that is given more candidates leaves its banks as they are, a smaller last one
    included, and what is new goes into banks of their own. So the sizes follow from what was asked
    for, however far a sweep had come by then.

    Args:
        candidates: of each task, as the sweep's commands have asked for them, rising.
        bank: candidates of a bank; the last ones of what was asked for may be fewer.
    """
    sizes: list[int] = []
    for before, after in zip((0, *candidates), candidates, strict=False):
        whole, rest = divmod(after - before, bank)
        sizes += [bank] * whole + [rest] * (rest > 0)
    return tuple(sizes)
