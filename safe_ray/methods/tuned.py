"""Methods that tune the pooling and blend what it gives with what the original one gives.

SAFE ("Enhancing Few-shot CLIP with Semantic-Aware Fine-Tuning", arXiv 2311.04464) blends features.
With P the pooling, theta the tuned and theta_0 the original parameters, W the classifier, s the
logit scale, n(.) normalisation and a = alpha, the class logits of a map X are

    features   s n(a P(X; theta) + (1 - a) P(X; theta_0)) W^T
    logits     a s n(P(X; theta)) W^T + (1 - a) s n(P(X; theta_0)) W^T
    weights    s n(P(X; a theta + (1 - a) theta_0)) W^T             WiSE-FT (arXiv 2109.01903)

At a = 0 each is zero-shot CLIP, at a = 1 each is the tuned pooling alone: so the latter
and a tuned projection are these methods with another alpha, or with other trained parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from safe_ray.heads.artifact import HOW_TO_LOAD, HOW_TO_LOAD_METHOD
from safe_ray.heads.bank import tuned_logits
from safe_ray.heads.blending import blend_logits, sum_alpha_row
from safe_ray.methods.base import Fitted, Recipe, TaskData, Values
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, sums_of_logits
from safe_ray.methods.linear import Linear
from safe_ray.poolings.base import QUERIES, HeadState
from safe_ray.poolings.queries import kept

Blend = Literal["features", "logits", "weights"]


@dataclass(frozen=True)
class Tuned:
    """A tuned pooling, blended with the original one.

    Attributes:
        blend: what is blended.
        parameters: which parts of the pooling are trained: "all", or some of its groups.
    """

    quantities: ClassVar[tuple[str, ...]] = ()
    knobs: ClassVar[tuple[tuple[str, ...], ...]] = (("alpha",),)
    zero_shot_at: ClassVar[Mapping[str, float]] = {"alpha": 0.0}

    blend: Blend = "features"
    parameters: str | Sequence[str] = "all"

    def __post_init__(self) -> None:
        """Refuse a blend that there is not."""
        if self.blend not in _FITTED:
            raise ValueError(f"blend is {self.blend!r}, and must be one of {', '.join(_FITTED)}")

    @property
    def recipe(self) -> Recipe:
        """See `Method`."""
        return Recipe.of(self.parameters)

    @property
    def how_to_load(self) -> Sequence[str]:
        """The lines that use a head; a blend of features needs open_clip alone."""
        return HOW_TO_LOAD if self.blend == "features" else HOW_TO_LOAD_METHOD

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`: the trained heads are all that there is to fit."""
        return [_FITTED[self.blend](task, head) for head in task.heads]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        return _FITTED[self.blend](task, {**task.original, **state} if QUERIES in state else state)


METHOD = Tuned


@dataclass(frozen=True)
class FeatureBlend:
    """SAFE: a blend of pooled features, all alphas in closed form."""

    task: TaskData
    head: HeadState

    def logits(self, features: Features, at: Mapping[str, float]) -> Tensor:
        """See `Fitted`."""
        tuned = features.pooled([self.head])[0, :, 0]
        original = features.original[:, 0]
        task = self.task
        return blend_logits(tuned, original, task.classifier, task.logit_scale, at["alpha"])

    def linear(self, at: Mapping[str, float]) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        task = self.task
        return Linear(task.classifier, task.logit_scale, self.head, at["alpha"], open=True)

    def sums(
        self, features: Features, labels: Tensor, grid: Grid, at: Mapping[str, float]
    ) -> KnobSums:
        """See `Fitted`."""
        alphas = tuple(grid["alpha"]) if grid else (at["alpha"],)
        [sums] = sum_alpha_row(
            features.pooled([self.head])[:, :, 0],
            features.original[:, 0],
            self.task.classifier,
            labels,
            self.task.logit_scale,
            alphas,
        )
        return sums

    def state(self) -> HeadState:
        """See `Fitted`: the tuned pooling, under the tower's own names."""
        return kept(self.head)


@dataclass(frozen=True)
class LogitBlend:
    """A blend of the logits of the tuned and of the original pooling."""

    task: TaskData
    head: HeadState

    def logits(self, features: Features, at: Mapping[str, float]) -> Tensor:
        """See `Fitted`."""
        classifier, scale = self.task.classifier, self.task.logit_scale
        tuned = tuned_logits(features.pooled([self.head])[0, :, 0], classifier, scale)
        original = tuned_logits(features.original[:, 0], classifier, scale)
        return at["alpha"] * tuned + (1.0 - at["alpha"]) * original

    def linear(self, at: Mapping[str, float]) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        classifier, scale = self.task.classifier, self.task.logit_scale
        return Linear(classifier, scale, self.head, at["alpha"], blended="logits", open=True)

    def sums(
        self, features: Features, labels: Tensor, grid: Grid, at: Mapping[str, float]
    ) -> KnobSums:
        """See `Fitted`."""
        zero_shot = self.logits(features, {"alpha": 0.0})
        return sums_of_logits(lambda a: self.logits(features, a), zero_shot, labels, grid, at)

    def state(self) -> HeadState:
        """See `Fitted`: the tuned pooling, under the tower's own names."""
        return kept(self.head)


class WeightBlend:
    """WiSE-FT: one pooling, whose weights lie between the original and the tuned ones."""

    def __init__(self, task: TaskData, head: HeadState) -> None:
        self._task = task
        self._head = head
        # One state an alpha, so that features which know a head by its identity pool it once.
        self._between: dict[float, HeadState] = {}

    def logits(self, features: Features, at: Mapping[str, float]) -> Tensor:
        """See `Fitted`."""
        pooled = features.pooled([self._at(at["alpha"])])[0, :, 0]
        return tuned_logits(pooled, self._task.classifier, self._task.logit_scale)

    def linear(self, at: Mapping[str, float]) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`: the pooling between the two, alone."""
        between = self._at(at["alpha"])
        return Linear(self._task.classifier, self._task.logit_scale, between, alpha=1.0)

    def sums(
        self, features: Features, labels: Tensor, grid: Grid, at: Mapping[str, float]
    ) -> KnobSums:
        """See `Fitted`."""
        zero_shot = tuned_logits(
            features.original[:, 0], self._task.classifier, self._task.logit_scale
        )
        return sums_of_logits(lambda a: self.logits(features, a), zero_shot, labels, grid, at)

    def state(self) -> HeadState:
        """See `Fitted`: the tuned pooling, under the tower's own names."""
        return kept(self._head)

    def _at(self, alpha: float) -> HeadState:
        if alpha not in self._between:
            self._between[alpha] = {
                name: torch.lerp(start.to(tuned.device, tuned.dtype), tuned, alpha)
                for name, tuned in self._head.items()
                # Queries of its own begin at zero, and the original one has none.
                for start in (self._task.original.get(name, torch.zeros_like(tuned)),)
            }
        return self._between[alpha]


_FITTED: dict[str, Callable[[TaskData, HeadState], Fitted]] = {
    "features": FeatureBlend,
    "logits": LogitBlend,
    "weights": WeightBlend,
}
