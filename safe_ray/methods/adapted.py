"""Methods that put an adapter on pooled features: Tip-Adapter, GDA, ProKeR, SS-Text and SAFE-A.

The features are either those of the original pooling, or SAFE's: with P the pooling, theta the
tuned and theta_0 the original parameters, a = alpha and n(.) normalisation,

    f(a) = n(a P(X; theta) + (1 - a) P(X; theta_0))        original features are those at a = 0
    logits = s f W^T + correction(f)

where W is the classifier, s the logit scale and the correction the adapter's: see
`safe_ray.methods.cache`, `.gaussian`, `.kernel` and `.text_prior`. The adapter is fitted to the
support samples' features at the same alpha. SAFE-A is SAFE with a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import tuned_logits
from safe_ray.heads.sums import KnobSums, sums_of_hits
from safe_ray.methods import cache, gaussian, kernel, text_prior
from safe_ray.methods.base import At, Fitted, Recipe, TaskData, Values
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, sums_of_logits
from safe_ray.methods.linear import Linear
from safe_ray.poolings.base import HeadState

Correction = Callable[[Tensor, dict[str, float]], Tensor]
"""Normalised features `[N, D]` and the adapter's knobs to what it adds to logits `[N, classes]`."""

Fit = Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Correction]
"""Of support features `[S, V, D]` (not normalised), labels, classifier, logit scale, moved keys."""

# What the adapter keeps, beside the head's parameters under the tower's own names.
_PREFIX = "adapter."

# Numbers of a block of affinities, votes or logits: what a CPU's cache holds; a GPU wants more.
_BLOCK_CPU, _BLOCK_GPU = 2**20, 2**26


@dataclass(frozen=True)
class Adapter:
    """One kind of adapter.

    Attributes:
        knobs: their names, which are solved together.
        fit: makes the correction.
        each_view: whether each view of a support sample counts for itself, or their mean.
    """

    knobs: tuple[str, ...]
    fit: Fit
    each_view: bool = False


ADAPTERS = {
    "cache": Adapter(cache.KNOBS, cache.fit),
    "gda": Adapter(gaussian.KNOBS, gaussian.fit, each_view=True),
    "kernel": Adapter(kernel.KNOBS, kernel.fit),
    "ss_text": Adapter(text_prior.KNOBS, text_prior.fit),
}


@dataclass(frozen=True)
class Adapted:
    """An adapter on features.

    Attributes:
        features: whose: the `original` pooling's, or `safe`'s blended ones.
        adapter: a name in `ADAPTERS`.
        train: whether the keys of a cache are trained (Tip-Adapter-F). With `safe` features, what
            training moves the keys by is added to them at every alpha.
        train_alpha: the alpha of the features that `safe`'s keys are trained on.
        train_beta: beta while the keys are trained, as published for ImageNet.
        train_gamma: gamma while the keys are trained, as published for ImageNet.
        parameters: which parts of the pooling are trained: "all", or some of its groups.
    """

    features: Literal["original", "safe"] = "original"
    adapter: str = "cache"
    train: bool = False
    train_alpha: float = 0.5
    train_beta: float = 1.0
    train_gamma: float = 1.17
    parameters: str | Sequence[str] = "all"

    KEY_QUANTITIES: ClassVar[Mapping[str, tuple[str, str]]] = {
        "original": ("lr", "epochs"),
        "safe": ("key_lr", "key_epochs"),
    }

    def __post_init__(self) -> None:
        """Refuse options that make no method."""
        if self.features not in self.KEY_QUANTITIES:
            raise ValueError(f"features is {self.features!r}, and must be original or safe")
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter is {self.adapter!r}, and must be one of {_names()}")
        if self.train and self.adapter != "cache":
            raise ValueError(f"train is for the adapter 'cache', and not for {self.adapter!r}")

    @property
    def quantities(self) -> tuple[str, ...]:
        """See `Method`: with trained keys, their learning rate and epochs."""
        return self.KEY_QUANTITIES[self.features] if self.train else ()

    @property
    def knobs(self) -> tuple[tuple[str, ...], ...]:
        """See `Method`."""
        groups = (("alpha",) if self.features == "safe" else (), ADAPTERS[self.adapter].knobs)
        return tuple(group for group in groups if group)

    @property
    def recipe(self) -> Recipe | None:
        """See `Method`."""
        if self.features == "original":
            return None
        return Recipe.of(self.parameters)

    def fit(self, task: TaskData, candidates: Sequence[Values]) -> Sequence[Fitted]:
        """See `Method`."""
        labels = task.labels.to(task.classifier.device)
        original = self._views(task.features.original)
        if self.features == "original":
            fitted = [AdaptedTask(self, task, Pooled(original), labels)] * len(candidates)
        else:
            fitted = [
                AdaptedTask(
                    self,
                    task,
                    Pooled(original, self._views(task.features.pooled([head])[0])),
                    labels,
                    head,
                )
                for head in task.heads
            ]
        return self._trained(task, fitted, candidates) if self.train else fitted

    def load(self, state: Mapping[str, Tensor], task: TaskData) -> Fitted:
        """See `Method`."""
        device = task.classifier.device
        kept = {
            name.removeprefix(_PREFIX): tensor.to(device)
            for name, tensor in state.items()
            if name.startswith(_PREFIX)
        }
        head = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        support = Pooled(kept["original"], kept.get("tuned"))
        labels = kept["labels"].long()
        return AdaptedTask(self, task, support, labels, head or None, kept.get("moved"))

    def _views(self, features: Tensor) -> Tensor:
        """Return what the adapter sees of `[S, V, D]`: all views, or their mean as the only one."""
        return features if ADAPTERS[self.adapter].each_view else features.mean(1, keepdim=True)

    def _trained(
        self, task: TaskData, fitted: Sequence[AdaptedTask], candidates: Sequence[Values]
    ) -> list[Fitted]:
        lr, epochs = self.quantities
        alpha = self.train_alpha if self.features == "safe" else None
        support = [one.support.at(alpha) for one in fitted]
        keys = torch.stack([cache.cache_keys(views) for views in support])
        seen = self._seen(task, fitted, alpha)
        trained = cache.train_keys(
            nn.functional.normalize(seen, dim=-1),
            fitted[0].labels,
            keys,
            task.classifier,
            task.logit_scale,
            [float(values[lr]) for values in candidates],
            [round(values[epochs]) for values in candidates],
            self.train_beta,
            self.train_gamma,
            task.seed,
        )
        moved = (trained - keys).unbind()
        return [replace(one, moved=own) for one, own in zip(fitted, moved, strict=True)]

    def _seen(self, task: TaskData, fitted: Sequence[AdaptedTask], alpha: float | None) -> Tensor:
        """Return the support features in all views, `[K, S, V, D]`."""
        original = task.features.original
        if alpha is None:
            return original.expand(len(fitted), -1, -1, -1)
        heads = [one.head for one in fitted if one.head is not None]
        return torch.stack(
            [Pooled(original, task.features.pooled([head])[0]).at(alpha) for head in heads]
        )


METHOD = Adapted


@dataclass(frozen=True)
class Pooled:
    """Features of some samples, not normalised, as both poolings give them.

    Attributes:
        original: `[..., D]`.
        tuned: `[..., D]`; None where there is no tuned pooling.
    """

    original: Tensor
    tuned: Tensor | None = None

    def at(self, alpha: float | None) -> Tensor:
        """Return the blend at one alpha; None, or no tuned pooling, is the original alone."""
        if alpha is None or self.tuned is None:
            return self.original
        return alpha * self.tuned + (1.0 - alpha) * self.original

    def part(self, rows: slice) -> Pooled:
        """Return some of the samples."""
        return Pooled(self.original[rows], None if self.tuned is None else self.tuned[rows])


@dataclass(frozen=True)
class AdaptedTask:
    """An adapter that is fitted to a task.

    Attributes:
        method: its options.
        task: the classifier and the scale are taken from it.
        support: `[S, V, D]`, the support samples as the adapter sees them.
        labels: `[S]`.
        head: the tuned pooling, for `safe` features.
        moved: `[S, D]`, what training has moved the keys of a cache by.
    """

    method: Adapted
    task: TaskData
    support: Pooled
    labels: Tensor
    head: HeadState | None = None
    moved: Tensor | None = None
    # The correction of the alpha that was asked for last: grids vary alpha slowest.
    _last: dict[float | None, Correction] = field(default_factory=dict, init=False, compare=False)

    def logits(self, features: Features, at: At) -> Tensor:
        """See `Fitted`."""
        return self._logits(self._pooled(features), at)

    def function(self, at: At) -> Callable[[Features], Tensor]:
        """See `safe_ray.methods.base.Graphable`."""
        alpha, knobs = self._alpha(at), dict(at)
        correction = self._correction(alpha)

        def logits(features: Features) -> Tensor:
            pooled = self._pooled(features).at(alpha)
            return self._zero_shot(pooled) + correction(
                nn.functional.normalize(pooled, dim=-1), knobs
            )

        return logits

    def linear(self, at: At) -> Linear | None:
        """See `safe_ray.methods.linear.HasLinear`: two of the adapters are linear in a feature."""
        alpha = self._alpha(at)
        task, views = self.task, self.support.at(alpha)
        weights, bias = task.classifier, None
        if self.method.adapter == "ss_text":
            support = cache.cache_keys(views)
            weights = text_prior.prototypes(support, self.labels, weights, task.logit_scale)
        elif self.method.adapter == "gda":
            vectors = nn.functional.normalize(views, dim=-1).flatten(0, 1)
            labels = self.labels.repeat_interleave(views.shape[1])
            moved, bias = gaussian.discriminant(vectors, labels, len(weights))
            weights = weights + (at["gamma"] / task.logit_scale) * moved
            bias = at["gamma"] * bias
        else:
            return None
        return Linear(weights, task.logit_scale, self.head, alpha or 0.0, bias)

    def sums(self, features: Features, labels: Tensor, grid: Grid, at: At) -> KnobSums:
        """See `Fitted`; a cache's grid comes from tables of affinities."""
        pooled, labels = self._pooled(features), labels.to(self.task.classifier.device)
        zero_shot = self._zero_shot(pooled.original)
        order = [name for name in ("alpha", *cache.KNOBS) if name in grid]
        if self.method.adapter == "cache" and list(grid) == order:
            return self._cache_sums(pooled, zero_shot, labels, grid, at)
        return sums_of_logits(lambda a: self._logits(pooled, a), zero_shot, labels, grid, at)

    def state(self) -> Mapping[str, Tensor]:
        """See `Fitted`: the tuned pooling under the tower's own names, and the support features."""
        kept = {
            "original": self.support.original,
            "tuned": self.support.tuned,
            "labels": self.labels,
            "moved": self.moved,
        }
        named = {_PREFIX + name: value for name, value in kept.items() if value is not None}
        return {**(self.head or {}), **named}

    def _pooled(self, features: Features) -> Pooled:
        tuned = None if self.head is None else features.pooled([self.head])[0, :, 0]
        return Pooled(features.original[:, 0], tuned)

    def _zero_shot(self, pooled: Tensor) -> Tensor:
        return tuned_logits(pooled, self.task.classifier, self.task.logit_scale)

    def _correction(self, alpha: float | None) -> Correction:
        if alpha not in self._last:
            views = self.support.at(alpha)
            self._last.clear()
            self._last[alpha] = ADAPTERS[self.method.adapter].fit(
                views, self.labels, self.task.classifier, self.task.logit_scale, self.moved
            )
        return self._last[alpha]

    @torch.no_grad()
    def _logits(self, pooled: Pooled, at: At) -> Tensor:
        alpha = self._alpha(at)
        correction = self._correction(alpha)
        rows = max(1, _BLOCK_GPU // max(1, len(self.labels)))
        parts = [
            self._zero_shot(part) + correction(nn.functional.normalize(part, dim=-1), dict(at))
            for part in pooled.at(alpha).split(rows)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _cache_sums(
        self, pooled: Pooled, zero_shot: Tensor, labels: Tensor, grid: Grid, at: At
    ) -> KnobSums:
        """Evaluate a grid with one affinity an alpha, and one sum of votes a beta."""
        classes = len(self.task.classifier)
        betas, gammas = (grid[name] if name in grid else (at[name],) for name in cache.KNOBS)
        alphas = grid["alpha"] if "alpha" in grid else (self._alpha(at),)
        groups = cache.ClassGroups(self.labels, classes)
        keys = Pooled(
            self.support.original.mean(1),
            None if self.support.tuned is None else self.support.tuned.mean(1),
        )
        block = _BLOCK_CPU if labels.device.type == "cpu" else _BLOCK_GPU
        size = max(1, block // max(len(self.labels), classes * len(gammas)))
        right, nll = [], []
        for start in range(0, len(labels), size):
            rows = slice(start, start + size)
            tables = Affinities(pooled.part(rows), keys, self.task.classifier, self.moved)
            tallies = [
                cache.tally(
                    affinity, self.task.logit_scale * scores, labels[rows], groups, betas, gammas
                )
                for affinity, scores in map(tables.at, alphas)
            ]
            right.append(torch.cat([hits for hits, _ in tallies], 1))
            nll.append(torch.cat([own for _, own in tallies]))
        before = zero_shot.argmax(-1) == labels
        return sums_of_hits(torch.cat(right), torch.stack(nll).sum(0), before, labels, classes)

    def _alpha(self, at: At) -> float | None:
        return None if self.support.tuned is None else at["alpha"]


class Affinities:
    """`f(a) k(a)` and `f(a) W` at any alpha, from products that do not depend on it.

    With T and O what the two poolings give of a sample, and t and o of a key,

        f k = (a^2 T t + a (1 - a) (T o + O t) + (1 - a)^2 O o)
              / |a T + (1 - a) O| / |a t + (1 - a) o|

    Args:
        features: of N samples, `[N, D]`.
        keys: of S, `[S, D]`, not normalised.
        classifier: `[classes, D]`, normalised.
        moved: `[S, D]`, what is added to the normalised keys.
    """

    def __init__(
        self, features: Pooled, keys: Pooled, classifier: Tensor, moved: Tensor | None
    ) -> None:
        self._features = [features.original]
        self._keys = [keys.original]
        if features.tuned is not None and keys.tuned is not None:
            self._features.append(features.tuned)
            self._keys.append(keys.tuned)
        self._products = [[f @ k.t() for k in self._keys] for f in self._features]
        self._scores = [f @ classifier.t() for f in self._features]
        self._moved = None if moved is None else [f @ moved.t() for f in self._features]

    def at(self, alpha: float | None) -> tuple[Tensor, Tensor]:
        """Return `[N, S]` affinities and `[N, classes]` scores, both of normalised features."""
        weights = [1.0] if len(self._features) == 1 or alpha is None else [1.0 - alpha, alpha]
        shrink = 1.0 / _norm(self._features, weights)
        product = torch.stack(
            [
                (one * other) * self._products[i][j]
                for i, one in enumerate(weights)
                for j, other in enumerate(weights)
            ]
        ).sum(0)
        affinity = product / _norm(self._keys, weights).t()
        if self._moved is not None:
            affinity = affinity + _mix(self._moved, weights)
        return affinity * shrink, _mix(self._scores, weights) * shrink


def _mix(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    first, *others = (weight * part for weight, part in zip(weights, parts, strict=False))
    return sum(others, first)


def _norm(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the norms `[n, 1]` of a blend."""
    return torch.linalg.vector_norm(_mix(parts, weights), dim=-1, keepdim=True).clamp_min(1e-12)


def _names() -> str:
    return ", ".join(ADAPTERS)
