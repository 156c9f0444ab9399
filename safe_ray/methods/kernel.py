"""ProKeR: kernel ridge regression on what zero-shot CLIP leaves of the labels.

With f a normalised feature, S the normalised support features, Y their one-hot labels, W the
classifier and s the logit scale, the logits are

    s (f W^T + K(f, S) (K(S, S) / lambda + I)^-1 (Y - S W^T))       K(x, y) = exp(-beta (1 - x y))

The scale s leaves the order of the classes as it is, and gives probabilities on CLIP's scale.
A support feature is the mean of a sample's views, normalised: the kernel grows with the square of
its number, so views do not count one by one as they do in the authors' code.

Source: Bendou et al., "ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language
Models", CVPR 2025; `trainers/proker.py` as github.com/omarnust/BReg-Adapter holds it, where lambda
is `lmbda`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

KNOBS = ("beta", "lambda")


def kernel(left: Tensor, right: Tensor, beta: float) -> Tensor:
    """Return `exp(-beta (1 - x y))` of normalised rows: `[N, D]` and `[S, D]` to `[N, S]`."""
    return torch.exp(beta * (left @ right.t() - 1.0))


class Ridge:
    """The solutions of the regression for any lambda, from one eigendecomposition for each beta.

    Args:
        support: `[S, D]`, normalised.
        residual: `[S, classes]`, what the regression is to give at the support features.
    """

    def __init__(self, support: Tensor, residual: Tensor) -> None:
        self._support = support.double()
        self._residual = residual.double()
        self._beta: float | None = None
        self._last: tuple[float, float, Tensor] | None = None
        self._values = self._vectors = self._rotated = self._residual

    def coefficients(self, beta: float, ridge: float) -> Tensor:
        """Return `(K(S, S) / ridge + I)^-1 residual`, float64 `[S, classes]`."""
        # Batch after batch asks for the same ones.
        if self._last is not None and self._last[:2] == (beta, ridge):
            return self._last[2]
        if beta != self._beta:
            values, self._vectors = torch.linalg.eigh(kernel(self._support, self._support, beta))
            self._values = values.clamp_min(0.0).unsqueeze(1)
            self._rotated = self._vectors.t() @ self._residual
            self._beta = beta
        found = self._vectors @ (self._rotated / (self._values / ridge + 1.0))
        self._last = beta, ridge, found
        return found


def fit(
    views: Tensor, labels: Tensor, classifier: Tensor, logit_scale: float, moved: Tensor | None
) -> Callable[[Tensor, dict[str, float]], Tensor]:
    """Return what the regression adds to the logits; see `safe_ray.methods.adapted.Adapter`."""
    support = nn.functional.normalize(views.mean(1), dim=-1)
    one_hot = nn.functional.one_hot(labels, len(classifier)).to(support.dtype)
    ridge = Ridge(support, one_hot - support @ classifier.t())

    def correction(features: Tensor, at: dict[str, float]) -> Tensor:
        coefficients = ridge.coefficients(at["beta"], at["lambda"]).to(features.dtype)
        return logit_scale * (kernel(features, support, at["beta"]) @ coefficients)

    return correction
