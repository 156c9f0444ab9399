"""TaskRes: a residual on the text embeddings, trained on the support samples.

With f a normalised feature, t the text embeddings, x the residual, a the knob `ratio`, s the logit
scale and n(.) normalisation,

    logits = s f n(t + a x)^T

x begins at 0 and is trained with a = 0.5; the validation samples decide a afterwards.

Source: Yu et al., "Task Residual for Tuning Vision-Language Models", CVPR 2023;
`trainers/taskres.py` of github.com/geekyutao/TaskRes, where a is fixed at 0.5 (1 for one data set).
Its configurations train with Adam at 2e-3 (2e-4 for ImageNet) and an L2 penalty, from embeddings
that are not normalised; this trains with AdamW from normalised ones, with a learning rate that is
searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import tuned_logits
from safe_ray.methods.base import At, Fitted, TaskData, Values
from safe_ray.methods.feature_training import Stacked, train_on_features
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, sums_of_logits
from safe_ray.methods.linear import Linear

_RESIDUAL = "adapter.residual"


@dataclass(frozen=True)
class TaskResidual:
    """See the module.

    Attributes:
        train_ratio: a while the residual is trained.
    """

    quantities: ClassVar[tuple[str, ...]] = ("lr", "epochs")
    knobs: ClassVar[tuple[tuple[str, ...], ...]] = (("ratio",),)
    zero_shot_at: ClassVar[Mapping[str, float]] = {"ratio": 0.0}
    recipe: ClassVar[None] = None

    train_ratio: float = 0.5

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`."""
        text, scale = task.classifier, task.logit_scale
        seen = nn.functional.normalize(task.features.original, dim=-1)

        def logits(residual: Stacked, features: Tensor) -> Tensor:
            weights = nn.functional.normalize(text + self.train_ratio * residual[0], dim=-1)
            return scale * (features @ weights.transpose(1, 2))

        (residuals,) = train_on_features(
            seen.unsqueeze(0).expand(len(candidates), -1, -1, -1),
            task.labels.to(text.device),
            [torch.zeros_like(text).expand(len(candidates), *text.shape)],
            logits,
            [float(values["lr"]) for values in candidates],
            [round(values["epochs"]) for values in candidates],
            task.seed,
        )
        return [ShiftedText(task, residual) for residual in residuals]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        return ShiftedText(task, state[_RESIDUAL].to(task.classifier))


METHOD = TaskResidual


@dataclass(frozen=True)
class ShiftedText:
    """A residual `[classes, D]`, fitted to a task."""

    task: TaskData
    residual: Tensor

    def logits(self, features: Features, at: At) -> Tensor:
        """See `Fitted`."""
        return tuned_logits(features.original[:, 0], self._classifier(at), self.task.logit_scale)

    def linear(self, at: At) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        return Linear(self._classifier(at), self.task.logit_scale)

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """See `Fitted`."""
        zero_shot = self.logits(features, {"ratio": 0.0})
        labels = labels.to(zero_shot.device)
        return sums_of_logits(lambda a: self.logits(features, a), zero_shot, labels, grid, at)

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`."""
        return {_RESIDUAL: self.residual}

    def _classifier(self, at: At) -> Tensor:
        shifted = self.task.classifier + at["ratio"] * self.residual
        return nn.functional.normalize(shifted, dim=-1)
