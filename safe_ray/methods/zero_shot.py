"""Zero-shot CLIP: the model as it is, for comparison. Nothing is searched, trained or kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from safe_ray.heads.bank import tuned_logits
from safe_ray.methods.base import Fitted, TaskData, Values
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, sums_of_logits
from safe_ray.methods.linear import Linear


@dataclass(frozen=True)
class ZeroShot:
    """See the module."""

    quantities: ClassVar[tuple[str, ...]] = ()
    knobs: ClassVar[tuple[tuple[str, ...], ...]] = ()
    recipe: ClassVar[None] = None

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`."""
        return [Untouched(task) for _ in candidates]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        return Untouched(task)


METHOD = ZeroShot


@dataclass(frozen=True)
class Untouched:
    """The model as it is: `s n(P(X; theta_0)) W^T`."""

    task: TaskData

    def logits(self, features: Features, at: Mapping[str, float]) -> Tensor:
        """See `Fitted`."""
        return tuned_logits(features.original[:, 0], self.task.classifier, self.task.logit_scale)

    def linear(self, at: Mapping[str, float]) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        return Linear(self.task.classifier, self.task.logit_scale)

    def sums(
        self, features: Features, labels: Tensor, grid: Grid, at: Mapping[str, float]
    ) -> KnobSums:
        """See `Fitted`."""
        zero_shot = self.logits(features, at)
        return sums_of_logits(lambda _: zero_shot, zero_shot, labels, grid, at)

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`: there is nothing to keep."""
        return {}
