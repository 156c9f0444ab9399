"""SAFE with updates of low rank: each projection of the pooling changes by a thin product.

The weights are `W_0 + U D` (see `safe_ray.poolings.low_rank`), the blend is SAFE's. The rank r is
searched like a learning rate. What is kept is U and D alone: at RN50's size and r = 8 some 0.5 MB
instead of 59 MB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from safe_ray.heads.artifact import HOW_TO_LOAD
from safe_ray.methods.base import At, Fitted, Recipe, TaskData, Values
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums
from safe_ray.methods.linear import Linear
from safe_ray.methods.tuned import FeatureBlend
from safe_ray.poolings.low_rank import DOWN, factors_of, weights_of, with_factors

HOW_TO_LOAD_FACTORS = (
    *HOW_TO_LOAD[:6],
    HOW_TO_LOAD[6],
    "factors = load_file('head.safetensors'); weights = part.state_dict()",
    "names = [name.removesuffix('.up') for name in factors if name.endswith('.up')]",
    "new = {n: weights[n] + factors[n + '.up'] @ factors[n + '.down'] for n in names}",
    "part.load_state_dict({**weights, **new})",
    *HOW_TO_LOAD[9:],
)
"""A head in plain open_clip, line by line: where another head's weights are loaded, these are made.
"""


@dataclass(frozen=True)
class LowRankTuned:
    """See the module.

    Attributes:
        parameters: which parts of the pooling are tuned, of which the matrices change: "all", or
            some of its groups.
    """

    quantities: ClassVar[tuple[str, ...]] = ("rank",)
    knobs: ClassVar[tuple[tuple[str, ...], ...]] = (("alpha",),)
    zero_shot_at: ClassVar[Mapping[str, float]] = {"alpha": 0.0}
    how_to_load: ClassVar[tuple[str, ...]] = HOW_TO_LOAD_FACTORS

    parameters: str | Sequence[str] = "all"

    @property
    def recipe(self) -> Recipe:
        """See `Method`."""
        return Recipe.of(self.parameters, low_rank=True)

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`: the trained heads are all that there is to fit."""
        return [
            LowRankBlend(FeatureBlend(task, head), round(values["rank"]))
            for head, values in zip(task.heads, candidates, strict=True)
        ]

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        rank = next(len(tensor) for name, tensor in state.items() if name.endswith(DOWN))
        return LowRankBlend(FeatureBlend(task, with_factors(task.original, state)), rank)


METHOD = LowRankTuned


@dataclass(frozen=True)
class LowRankBlend:
    """SAFE's blend, of which the factors are kept."""

    blend: FeatureBlend
    rank: int

    def logits(self, features: Features, at: At) -> Tensor:
        """See `Fitted`."""
        return self.blend.logits(features, at)

    def linear(self, at: At) -> Linear:
        """See `safe_ray.methods.linear.HasLinear`."""
        return self.blend.linear(at)

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """See `Fitted`."""
        return self.blend.sums(features, labels, grid, at)

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`: the factors of every weight that training has moved."""
        head, original = self.blend.head, self.blend.task.original
        moved = [
            name
            for name in weights_of(list(head), original)
            if not bool((head[name].cpu() == original[name].cpu()).all())
        ]
        return factors_of(head, original, moved, self.rank)
