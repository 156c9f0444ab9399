"""The best candidate of each task and method, by what the validation samples say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safe_ray.heads.selection import shows_gain
from safe_ray.report.summary import ValidationResult
from safe_ray.specs import MethodSpec
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import BankOutcome, CandidateOutcome, Fit


class ResultId(NamedTuple):
    """What a sweep has a result for."""

    task_id: str
    method: str

    def label(self, methods: int) -> str:
        """Return its name in a sweep of so many methods; with one, that is the task's."""
        return self.task_id if methods == 1 else f"{self.task_id}-{self.method}"


@dataclass(frozen=True)
class Winner:
    """The fitted method that the search of a task ended with.

    Attributes:
        task_id: the task.
        method: which method.
        folder: what it keeps; None for a method that keeps nothing.
        at: the chosen value of each knob.
    """

    task_id: str
    method: MethodSpec
    folder: Path | None
    at: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The candidate that the search of a task ended with for a method.

    Attributes:
        winner: what is tested.
        candidate: the candidate that scored best.
        fit: what the validation samples said of it.
        gave_way: zero-shot has taken its place (see `safe_ray.sweep.caution`).
    """

    winner: Winner
    candidate: CandidateOutcome
    fit: Fit
    gave_way: bool = False

    @property
    def id(self) -> ResultId:
        """The task and the method."""
        return ResultId(self.winner.task_id, self.winner.method.name)

    @property
    def values(self) -> dict[str, float]:
        """What the candidate was trained with, and its knobs; nothing if nothing of it is kept."""
        if self.gave_way and self.winner.folder is None:
            return {}
        return {**self.candidate.values, **self.winner.at}

    @property
    def validation(self) -> ValidationResult:
        """What the summary says of the choice."""
        point = self.fit.point
        return ValidationResult(
            accuracy=point.accuracy,
            mean_per_class=point.mean_per_class,
            nll=point.nll,
            gained=point.gained,
            lost=point.lost,
            gain_shown=shows_gain(point.gained, point.lost),
        )


def choose(sweep: str, outcomes: Sequence[BankOutcome], method: MethodSpec) -> Choice | None:
    """Return a method's best candidate of a study's banks; None if all failed.

    Of equal candidates the first is taken.
    """
    best: Choice | None = None
    for outcome in outcomes:
        folder = BankJob(sweep, outcome.task_id, outcome.group, outcome.bank, ()).folder
        for candidate in outcome.candidates:
            fit = candidate.fits.get(method.name)
            if fit is None or (best is not None and fit.point.score <= best.fit.point.score):
                continue
            head = None if fit.head is None else folder / fit.head
            best = Choice(Winner(outcome.task_id, method, head, fit.at), candidate, fit)
    return best
