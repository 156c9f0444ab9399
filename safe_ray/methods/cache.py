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
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from safe_ray.methods.feature_training import Stacked, train_on_features

KNOBS = ("beta", "gamma")

# Steps of a grid that differ by less are one step; a grid's numbers carry rounding of their own.
_SAME_GAP = 1e-9
# After so many products exponentials are taken again.
_EXACT_EVERY = 16
# Units in the last place that a product of exponentials may be wrong by, with much to spare.
_ROUNDING = 16

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
    return votes.new_zeros(votes.shape[0], classes).index_add_(1, labels, votes)


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

    def votes(self, arranged: Tensor, betas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the votes `[classes, N]` at each beta.

        Where betas are evenly spaced, the exponentials of one are those of the last times a factor
        that does not change, which is cheaper than to take them again.
        """
        powers = torch.empty_like(arranged)
        factor: Tensor | None = None
        last_gap = math.nan
        for place, beta in enumerate(betas):
            gap = beta - betas[place - 1] if place else math.nan
            steady = abs(gap - last_gap) <= _SAME_GAP
            if steady and factor is None:
                factor = torch.exp(gap * arranged)
            if not steady:
                factor = None
            # Now and then they are taken again, since each product rounds.
            if factor is None or place % _EXACT_EVERY == 0:
                torch.mul(arranged, beta, out=powers).exp_()
                if self._absent is not None:
                    powers.masked_fill_(self._absent, 0.0)
            else:
                powers.mul_(factor)
            last_gap = gap
            votes = powers.sum(0)
            if len(votes) < self._classes:
                all_votes = votes.new_zeros(self._classes, votes.shape[1])
                votes = all_votes.index_copy_(0, self._present, votes)
            yield votes

    @property
    def width(self) -> int:
        """How many keys the class with the most has: no vote is higher."""
        return self._index.shape[0]


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
    # What is left of a float's range is for the sum over the classes.
    held = 0.75 * math.log(torch.finfo(zero_shot.dtype).max)
    fits = min(gammas) >= 0 and max(gammas) * groups.width <= held
    of_votes = _Products(zero_shot, labels) if fits else _Logits(zero_shot, labels)
    right, nll = [], []
    for votes in groups.votes(groups.arrange(affinity), betas):
        hits, odds = of_votes(votes, gammas)
        right.append(hits)
        nll.append(odds.double().sum(1))
    return torch.cat(right).t(), torch.cat(nll)


class _Logits:
    """Hits and cross entropies of N samples, from the logits of every gamma.

    Args:
        zero_shot: `[N, classes]`.
        labels: `[N]`.
    """

    def __init__(self, zero_shot: Tensor, labels: Tensor) -> None:
        self._labels = labels
        self._rows = torch.arange(len(labels), device=labels.device)
        self._scores = zero_shot.t().contiguous()

    def __call__(self, votes: Tensor, gammas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return `[G, N]` hits and `[G, N]` nats, from votes `[classes, N]`."""
        gamma = torch.tensor(gammas, dtype=votes.dtype, device=votes.device).view(-1, 1, 1)
        others = torch.addcmul(self._scores, votes, gamma)  # [G, classes, N]
        own = others[:, self._labels, self._rows]
        # The right class is kept apart from the others, so that one maximum decides.
        others[:, self._labels, self._rows] = -math.inf
        highest = others.amax(1)
        hit = own > highest
        tied = own == highest
        if bool(tied.any()):
            # Of equal logits the first class is taken, as `argmax` has it.
            hit |= tied & (self._labels < others.argmax(1))
        top = torch.maximum(own, highest)
        rest = others.sub_(top.unsqueeze(1)).exp_().sum(1)
        return hit, (rest + torch.exp(own - top)).log_() + top - own


class _Products:
    """What `_Logits` gives, from exponentials that each gamma multiplies on.

    With z the zero-shot logits less their maximum and v the votes, class c has `exp(z_c + gamma
    v_c)`: at each gamma a product with `exp(v (gamma - the last gamma))`, which evenly spaced
    gammas share. The sum over all classes is at least 1. A class whose power is too small for a
    float has no share in the sum that a float could hold. Where gamma v may be too large for one,
    `tally` takes `_Logits`.

    Args:
        zero_shot: `[N, classes]`.
        labels: `[N]`.
    """

    def __init__(self, zero_shot: Tensor, labels: Tensor) -> None:
        self._exact = _Logits(zero_shot, labels)
        self._labels = labels
        self._rows = torch.arange(len(labels), device=labels.device)
        scores = (zero_shot - zero_shot.amax(1, keepdim=True)).t().contiguous()
        self._target = scores[labels, self._rows].clone()
        powers = scores.exp_()
        self._own = powers[labels, self._rows].clone()
        # The right class is kept apart from the others, so that one maximum decides.
        powers[labels, self._rows] = 0.0
        self._others = powers

    def __call__(self, votes: Tensor, gammas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return `[G, N]` hits and `[G, N]` nats, from votes `[classes, N]`."""
        own, highest, total = votes.new_empty(3, len(gammas), votes.shape[1])
        others, power = self._others.clone(), self._own.clone()
        last_gamma, last_gap = 0.0, math.nan
        for place, gamma in enumerate(gammas):
            gap = gamma - last_gamma
            if not abs(gap - last_gap) <= _SAME_GAP:
                factor = torch.exp(gap * votes)
                own_factor = factor[self._labels, self._rows]
            last_gamma, last_gap = gamma, gap
            others.mul_(factor)
            torch.mul(power, own_factor, out=own[place])
            power = own[place]
            torch.amax(others, 0, out=highest[place])
            torch.sum(others, 0, out=total[place])
        # Each product rounds: what is nearer than that is for the logits to decide.
        near = _ROUNDING * len(gammas) * torch.finfo(own.dtype).eps
        if bool(((own - highest).abs() <= near * highest).any()):
            return self._exact(votes, gammas)
        gamma_column = torch.tensor(gammas, dtype=votes.dtype, device=votes.device).view(-1, 1)
        logit = self._target + gamma_column * votes[self._labels, self._rows]
        return own > highest, total.add_(own).log_() - logit


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
