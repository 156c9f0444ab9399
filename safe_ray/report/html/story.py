"""What the page tells of a task: plain values, whoever gathers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from safe_ray.report.confusion import Confusion
from safe_ray.report.looks import LookedAt
from safe_ray.report.summary import TaskResult, task_id


@dataclass(frozen=True)
class Curve:
    """Validation figures along one knob of a candidate.

    Attributes:
        values: of the knob.
        accuracy: 0 to 1, by the metric that the task is judged by.
        nll: mean negative log-likelihood in nats.
    """

    values: Sequence[float]
    accuracy: Sequence[float]
    nll: Sequence[float]


@dataclass(frozen=True)
class Candidate:
    """One candidate of a method.

    Attributes:
        values: what it was trained with.
        at: the chosen value of each knob.
        accuracy: on the validation samples, by the task's metric; None if it failed.
        curves: along each knob that was solved by itself.
        losses: mean training loss of each epoch; not a number where it was not finite.
        chosen: whether it is the winner.
    """

    values: Mapping[str, float]
    at: Mapping[str, float]
    accuracy: float | None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    losses: Sequence[float] = ()
    chosen: bool = False


@dataclass(frozen=True)
class TaskStory:
    """All that the page tells of one task.

    Attributes:
        results: of each method, in the order of the tables.
        candidates: of each method, by its name.
        confusions: of zero-shot and each method, by name.
        looks: test images of one method, with where it looks.
    """

    results: Sequence[TaskResult]
    candidates: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    confusions: Mapping[str, Confusion] = field(default_factory=dict)
    looks: Sequence[LookedAt] = ()

    @property
    def name(self) -> str:
        """The task's id."""
        return task_id(self.results[0])

    @property
    def shown(self) -> TaskResult:
        """The method that pictures are of, or else the one that validation prefers."""
        if self.looks:
            return next(r for r in self.results if r.method == self.looks[0].method)
        return max(self.results, key=lambda r: (r.validation.accuracy, -r.validation.nll))


def tasks_of(results: Sequence[TaskResult]) -> list[list[TaskResult]]:
    """Return the results of each task together, in their order."""
    found: dict[tuple[str, int, int], list[TaskResult]] = {}
    for result in results:
        found.setdefault((result.dataset, result.shots, result.seed), []).append(result)
    return list(found.values())
