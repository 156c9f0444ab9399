"""CLIP-Adapter: two small layers on the image feature, blended with it.

With f a feature as the pooling returns it, r the knob `ratio`, t the text embeddings, s the logit
scale and n(.) normalisation,

    f' = r relu(relu(f A) B) + (1 - r) f          A: [D, D / 4], B: [D / 4, D], no biases
    logits = s n(f') t^T

A and B are trained on the support samples with r = 0.2; the validation samples decide r afterwards.

Source: Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", IJCV 2024;
`clip_adapter.py` of github.com/gaopengcuhk/CLIP-Adapter, which publishes no configuration of its
training: AdamW is this project's choice, and its learning rate is searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from safe_ray.heads.bank import tuned_logits
from safe_ray.methods.base import At, Fitted, TaskData, Values
from safe_ray.methods.feature_training import Stacked, train_on_features
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, sums_of_logits

_DOWN, _UP = "adapter.down", "adapter.up"


@dataclass(frozen=True)
class ClipAdapter:
    """See the module.

    Attributes:
        reduction: D over the width between the layers.
        train_ratio: r while A and B are trained.
    """

    quantities: ClassVar[tuple[str, ...]] = ("lr", "epochs")
    knobs: ClassVar[tuple[tuple[str, ...], ...]] = (("ratio",),)
    zero_shot_at: ClassVar[Mapping[str, float]] = {"ratio": 0.0}
    recipe: ClassVar[None] = None

    reduction: int = 4
    train_ratio: float = 0.2

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`."""
        seen, text = task.features.original, task.classifier
        size = text.shape[1]
        middle = max(1, size // self.reduction)
        start = [
            _uniform(task.seed, size, middle).to(text),
            _uniform(task.seed + 1, middle, size).to(text),
        ]

        def logits(layers: Stacked, features: Tensor) -> Tensor:
            adapted = adapt(features, layers[0], layers[1], self.train_ratio)
            return tuned_logits(adapted, text, task.logit_scale)

        down, up = train_on_features(
            seen.unsqueeze(0).expand(len(candidates), -1, -1, -1),
            task.labels.to(text.device),
            [each.expand(len(candidates), *each.shape) for each in start],
            logits,
            [float(values["lr"]) for values in candidates],
            [round(values["epochs"]) for values in candidates],
            task.seed,
        )
        return [AdaptedImages(task, a, b) for a, b in zip(down, up, strict=True)]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        device = task.classifier.device
        return AdaptedImages(task, state[_DOWN].to(device), state[_UP].to(device))


METHOD = ClipAdapter


def adapt(features: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """Return `ratio relu(relu(f A) B) + (1 - ratio) f`, with or without a leading axis of K."""
    return ratio * torch.relu(torch.relu(features @ down) @ up) + (1.0 - ratio) * features


def _uniform(seed: int, rows: int, columns: int) -> Tensor:
    """Draw a layer as `torch.nn.Linear` does, transposed."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1.0 / math.sqrt(rows)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)


@dataclass(frozen=True)
class AdaptedImages:
    """The two layers, fitted to a task: `[D, D / 4]` and `[D / 4, D]`."""

    task: TaskData
    down: Tensor
    up: Tensor

    def logits(self, features: Features, at: At) -> Tensor:
        """See `Fitted`."""
        adapted = adapt(features.original[:, 0], self.down, self.up, at["ratio"])
        return tuned_logits(adapted, self.task.classifier, self.task.logit_scale)

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """See `Fitted`."""
        zero_shot = self.logits(features, {"ratio": 0.0})
        labels = labels.to(zero_shot.device)
        return sums_of_logits(lambda a: self.logits(features, a), zero_shot, labels, grid, at)

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`."""
        return {_DOWN: self.down, _UP: self.up}
