"""What many fitted methods come to: one linear classifier on a blend of two pooled features.

With T and O what the tuned and the original pooling give of an image, a = alpha, s the logit scale,
n(.) normalisation, W `[classes, D]` and b `[classes]`,

    features    logits = s n(a T + (1 - a) O) W^T + b
    logits      logits = s (a n(T) + (1 - a) n(O)) W^T + b

A method that is of this form can be used by whoever has the model and some lines of PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from safe_ray.poolings.base import HeadState

if TYPE_CHECKING:
    from safe_ray.methods.base import At

Blended = Literal["features", "logits"]


@dataclass(frozen=True)
class Linear:
    """See the module.

    Attributes:
        weights: W.
        logit_scale: s.
        head: the tuned pooling; None stands for the original one.
        alpha: a.
        bias: b; None is zero.
        blended: whether features are normalised after they are blended, or before.
        open: whether the method is of this form with the same W and b at any other alpha.
    """

    weights: Tensor
    logit_scale: float
    head: HeadState | None = None
    alpha: float = 0.0
    bias: Tensor | None = None
    blended: Blended = "features"
    open: bool = False

    def logits(self, tuned: Tensor, original: Tensor) -> Tensor:
        """Return logits `[N, classes]`.

        Args:
            tuned: T, `[N, D]`, as the pooling returns it.
            original: O, likewise.
        """
        normalize = nn.functional.normalize
        if self.blended == "logits":
            tuned, original = normalize(tuned, dim=-1), normalize(original, dim=-1)
        blend = self.alpha * tuned + (1.0 - self.alpha) * original
        if self.blended == "features":
            blend = normalize(blend, dim=-1)
        logits = self.logit_scale * (blend @ self.weights.t())
        return logits if self.bias is None else logits + self.bias


@runtime_checkable
class HasLinear(Protocol):
    """A fitted method that may be of this form."""

    def linear(self, at: At) -> Linear | None:
        """Return its form at a value for each knob; None where it has none."""
        ...
