"""The cache of Tip-Adapter: support samples vote for their class, the nearer the louder.

With f a normalised feature, `k_i` the normalised key of support sample i, `y_i` its class, W the
classifier and s the logit scale, the logit of class c is

    s f W_c + gamma * sum over i with y_i = c of exp(-beta (1 - f k_i))

A key is the mean of a sample's features over its views, normalised. Tip-Adapter-F trains the keys.

Source: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
ECCV 2022; `main.py` and `utils.py` of github.com/gaopengcuhk/Tip-Adapter, where gamma is `alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from safe_ray.methods.feature_training import Stacked, train_on_features

KNOBS = ("beta", "gamma")

# Of AdamW; the decay is torch's default.
_EPSILON, _WEIGHT_DECAY = 1e-4, 1e-2


def cache_keys(views: Tensor) -> Tensor:
    """Return the keys `[S, D]` of features in V views, `[S, V, D]`, not normalised."""
    return nn.functional.normalize(views.mean(1), dim=-1)


def class_votes(affinity: Tensor, labels: Tensor, classes: int, beta: float) -> Tensor:
    """Add up the votes for each class.

    Args:
        affinity: `[N, S]`, `f k`.
        labels: `[S]`, the class of each key; a class may have no key, and then has no votes.
        classes: how many there are.
        beta: how fast a vote falls with the distance.

    Returns:
        `[N, classes]`.
    """
    votes = torch.exp(beta * (affinity - 1.0))
    return votes.new_zeros(len(votes), classes).index_add_(1, labels, votes)


class ClassGroups:
    """The keys of each class side by side, so that votes are added without a product.

    Args:
        labels: `[S]`, the class of each key. Classes may have different numbers of keys, or none.
        classes: how many there are.
    """

    def __init__(self, labels: Tensor, classes: int) -> None:
        counts = torch.bincount(labels, minlength=classes)
        self._classes = classes
        self._present = counts.nonzero().flatten()
        counts = counts[self._present]
        width = int(counts.max()) if len(counts) else 0
        place = torch.arange(width, device=labels.device).unsqueeze(1)
        first = counts.cumsum(0) - counts
        absent = place >= counts
        # Which key is at which place of which class; a place without one repeats the first key.
        self._index = torch.argsort(labels, stable=True)[torch.where(absent, first, first + place)]
        self._absent = absent.unsqueeze(-1) if bool(absent.any()) else None

    def arrange(self, affinity: Tensor) -> Tensor:
        """Return `[N, S]` affinities minus 1 as `[keys a class, classes with keys, N]`."""
        return (affinity.t() - 1.0)[self._index]

    def votes(self, arranged: Tensor, beta: float, scratch: Tensor) -> Tensor:
        """Return the votes `[classes, N]` at one beta; `scratch` is of the shape of `arranged`."""
        torch.mul(arranged, beta, out=scratch).exp_()
        if self._absent is not None:
            scratch.masked_fill_(self._absent, 0.0)
        votes = scratch.sum(0)
        if len(votes) == self._classes:
            return votes
        return votes.new_zeros(self._classes, votes.shape[1]).index_copy_(0, self._present, votes)


@torch.no_grad()
def tally(
    affinity: Tensor,
    zero_shot: Tensor,
    labels: Tensor,
    groups: ClassGroups,
    betas: Sequence[float],
    gammas: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Classify N samples at every beta and gamma, from their affinities alone.

    For each beta the votes are added up once; all gammas follow from them.

    Args:
        affinity: `[N, S]`, `f k`.
        zero_shot: `[N, classes]`, `s f W`.
        labels: `[N]`, the right classes.
        groups: of the keys.
        betas: B values.
        gammas: G values.

    Returns:
        `[N, B * G]` bool, whether the highest logit is that of the right class, and `[B * G]`
        float64, the summed negative log-likelihood in nats; gamma varies fastest.
    """
    rows = torch.arange(len(labels), device=labels.device)
    arranged = groups.arrange(affinity)
    scratch = torch.empty_like(arranged)
    scores = zero_shot.t().contiguous()
    target = scores[labels, rows].clone()
    # The right class is kept apart from the others, so that one maximum decides.
    scores[labels, rows] = -math.inf
    gamma = torch.tensor(gammas, dtype=scores.dtype, device=scores.device).view(-1, 1, 1)
    others = scores.new_empty(len(gammas), *scores.shape)
    right, nll = [], []
    for beta in betas:
        votes = groups.votes(arranged, beta, scratch)
        own = target + gamma[:, 0] * votes[labels, rows]  # [G, N]
        torch.addcmul(scores, votes, gamma, out=others)  # [G, classes, N]
        highest = others.amax(1)
        hit = own > highest
        tied = own == highest
        if bool(tied.any()):
            # Of equal logits the first class is taken, as `argmax` has it.
            hit |= tied & (labels < others.argmax(1))
        top = torch.maximum(own, highest)
        rest = others.sub_(top.unsqueeze(1)).exp_().sum(1)
        odds = (rest + torch.exp(own - top)).log_() + top - own
        right.append(hit)
        nll.append(odds.double().sum(1))
    return torch.cat(right).t(), torch.cat(nll)


def train_keys(
    features: Tensor,
    labels: Tensor,
    keys: Tensor,
    classifier: Tensor,
    logit_scale: float,
    lrs: Sequence[float],
    epochs: Sequence[int],
    beta: float,
    gamma: float,
    seed: int,
) -> Tensor:
    """Train the keys of K candidates at once, each as if alone.

    As published: cross-entropy of the logits above on the support samples in batches of 256, AdamW
    with torch's defaults but an epsilon of 1e-4, and a cosine of the learning rate to zero. In each
    epoch a sample is seen in one of its views, drawn at random; all candidates see the same.

    Args:
        features: `[K, S, V, D]`, normalised.
        labels: `[S]`.
        keys: `[K, S, D]`, where to begin.
        classifier: `[classes, D]`, normalised.
        logit_scale: s.
        lrs: one a candidate.
        epochs: one a candidate.
        beta: fixed while training.
        gamma: fixed while training.
        seed: of the views and the order.

    Returns:
        `[K, S, D]`, not normalised again, as published.
    """
    one_hot = nn.functional.one_hot(labels, len(classifier)).to(keys.dtype)

    def logits(parameters: Stacked, seen: Tensor) -> Tensor:
        votes = torch.exp(beta * (seen @ parameters[0].transpose(1, 2) - 1.0)) @ one_hot
        return logit_scale * (seen @ classifier.t()) + gamma * votes

    (trained,) = train_on_features(
        features,
        labels,
        [keys],
        logits,
        lrs,
        epochs,
        seed,
        weight_decay=_WEIGHT_DECAY,
        epsilon=_EPSILON,
    )
    return trained


def fit(
    views: Tensor, labels: Tensor, classifier: Tensor, logit_scale: float, moved: Tensor | None
) -> Callable[[Tensor, dict[str, float]], Tensor]:
    """Return what the cache adds to the logits; see `safe_ray.methods.adapted.Adapter`."""
    keys = cache_keys(views)
    keys = keys if moved is None else keys + moved

    def correction(features: Tensor, at: dict[str, float]) -> Tensor:
        votes = class_votes(features @ keys.t(), labels, len(classifier), at["beta"])
        return at["gamma"] * votes

    return correction
