"""Gaussian discriminant analysis on pooled features, added to the zero-shot logits.

With f a normalised feature, `mu_c` the mean of class c, `Sigma` the covariance of the n centred
support features of D numbers, C classes, W the classifier and s the logit scale,

    P = D pinv((n - 1) Sigma + tr(Sigma) I)
    logit of c = s f W_c + gamma (f P mu_c + log(1 / C) - mu_c P mu_c / 2)

Every view of a support sample counts as a feature of its own. A class without support samples takes
the mean of all of them, which speaks neither for nor against it.

Source: Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024;
`main_few_shots.py` of github.com/mrflogs/ICLR24, where gamma is `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

KNOBS = ("gamma",)


def discriminant(vectors: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the weights `[classes, D]` and biases `[classes]` of the discriminant.

    Features that do not vary within their classes, such as one view of one shot, have no
    covariance: the weights are then zero, and the biases equal.

    Args:
        vectors: `[n, D]`, normalised.
        labels: `[n]`.
        classes: how many there are.
    """
    count, size = vectors.shape
    counts = torch.bincount(labels, minlength=classes).to(vectors.dtype).unsqueeze(1)
    sums = vectors.new_zeros(classes, size).index_add_(0, labels, vectors)
    means = torch.where(counts > 0, sums / counts.clamp_min(1), vectors.mean(0))
    centred = vectors - means[labels]
    scatter = (centred.t() @ centred).double()
    ridge = float(scatter.trace()) / max(1, count - 1)
    prior = -math.log(classes)
    # Rounding leaves about 1e-7 of each feature of norm 1 where there should be nothing.
    if ridge <= 1e-12:
        return torch.zeros_like(means), means.new_full((classes,), prior)
    scatter.diagonal().add_(ridge)
    # The matrix is positive definite, so that its pseudo-inverse is its inverse.
    factor = torch.linalg.cholesky(scatter)
    weights = size * torch.cholesky_solve(means.double().t(), factor).t()
    biases = prior - (weights * means.double()).sum(1) / 2
    return weights.to(vectors.dtype), biases.to(vectors.dtype)


def fit(
    views: Tensor, labels: Tensor, classifier: Tensor, logit_scale: float, moved: Tensor | None
) -> Callable[[Tensor, dict[str, float]], Tensor]:
    """Return what the discriminant adds to the logits; see `safe_ray.methods.adapted.Adapter`."""
    vectors = nn.functional.normalize(views, dim=-1).flatten(0, 1)
    weights, biases = discriminant(
        vectors, labels.repeat_interleave(views.shape[1]), len(classifier)
    )

    def correction(features: Tensor, at: dict[str, float]) -> Tensor:
        return at["gamma"] * (features @ weights.t() + biases)

    return correction
