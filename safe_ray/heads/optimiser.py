"""AdamW with a learning rate, a weight decay and a schedule for each candidate of a bank.

The update is torch's own fused AdamW on views into the bank's stacked weights and moments, so a
head of a bank is updated exactly as it would be alone, and a block of rows as in the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safe_ray.heads.bank import Bank
from safe_ray.poolings.base import HeadState


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to zero, over a candidate's own number of steps."""

    lr: float
    steps: int
    warmup_steps: int

    def at(self, step: int) -> float:
        """Return the learning rate of update `step` (from 0); 0 from `steps` on."""
        if step >= self.steps:
            return 0.0
        if step < self.warmup_steps:
            return self.lr * (step + 1) / (self.warmup_steps + 1)
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass
class Moments:
    """AdamW's running averages of one candidate, by parameter name, and its count of updates."""

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    updates: int


@dataclass(frozen=True)
class PullToStart:
    """What holds the candidates near where training began, in one of two ways, or both.

    With theta_0 the start, d the decay and lr the learning rate, each update begins with
    `theta -= lr d (theta - theta_0)`, decoupled from the gradient as AdamW's decay towards zero is.
    A penalty p adds `p |theta - theta_0|^2` to the loss, and so `2 p (theta - theta_0)` to the
    gradient that AdamW scales (ProLIP, arXiv 2410.05270).

    Attributes:
        start: theta_0, which all candidates share.
        decays: d, one a candidate; 0 leaves it alone.
        penalties: p, one a candidate; 0 leaves it alone. None is 0 for all.
    """

    start: HeadState
    decays: Sequence[float]
    penalties: Sequence[float] | None = None

    @property
    def acts(self) -> bool:
        """Whether any candidate is held."""
        return any(self.decays) or any(self.penalties or ())


class BankOptimiser:
    """AdamW over the candidates of a bank (betas 0.9 and 0.999, epsilon 1e-8).

    Args:
        bank: the bank whose trained parameters are updated in place.
        weight_decays: one a candidate, decoupled as in AdamW (Loshchilov and Hutter, 2019).
        moments: where to go on from, one a candidate, or None to begin.
        pull: a decay towards the start; None for none.
    """

    def __init__(
        self,
        bank: Bank,
        weight_decays: Sequence[float],
        moments: Sequence[Moments] | None = None,
        pull: PullToStart | None = None,
    ) -> None:
        self._parameters = {
            name: parameter
            for name in bank.trained
            if isinstance(parameter := bank.stacked(name), nn.Parameter)
        }
        stacked = {
            name: (parameter.detach(), torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in self._parameters.items()
        }
        # Weight and moments of each parameter of each candidate.
        self._views = [
            {name: (w[i], m[i], v[i]) for name, (w, m, v) in stacked.items()}
            for i in range(len(bank))
        ]
        self._row_views: dict[tuple[int, str, int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self._weight_decays = list(weight_decays)
        nothing = [0.0] * len(bank)
        self._pulls = list(pull.decays) if pull else nothing
        self._penalties = list((pull.penalties if pull else None) or nothing)
        self._start = {
            name: pull.start[name].to(parameter.device, parameter.dtype)
            for name, parameter in self._parameters.items()
            if pull and pull.acts
        }
        # Of the update that is under way, counted from 1.
        self._steps = list(torch.ones(len(bank), device=bank.classifier.device).unbind())
        if moments is not None:
            self._restore(moments)

    @property
    def names(self) -> frozenset[str]:
        """The names of the parameters that are updated."""
        return frozenset(self._parameters)

    def step(self, learning_rates: Sequence[float]) -> None:
        """Update every candidate with its learning rate, and forget the gradients."""
        for candidate, lr in enumerate(learning_rates):
            gradients = [
                (name, slice(0, parameter.shape[1]), parameter.grad[candidate])
                for name, parameter in self._parameters.items()
                if parameter.grad is not None
            ]
            self.update_rows(candidate, gradients, lr)
            self.finish(candidate)
        for parameter in self._parameters.values():
            parameter.grad = None

    def update_rows(
        self, candidate: int, gradients: Sequence[tuple[str, slice, Tensor]], lr: float
    ) -> None:
        """Update some rows of one candidate's parameters.

        An update of a candidate is any number of these calls, each row at most once, and `finish`.

        Args:
            candidate: its place in the bank.
            gradients: parameters by name, which rows of each, and the gradients of those rows,
                which are used up.
            lr: the learning rate.
        """
        views = [self._rows(candidate, name, rows) for name, rows, _ in gradients]
        if not views:
            return
        if penalty := self._penalties[candidate]:
            for (name, rows, gradient), (weight, _, _) in zip(gradients, views, strict=True):
                gradient.add_(weight - self._start[name][rows], alpha=2.0 * penalty)
        if self._pulls[candidate]:
            for (name, rows, _), (weight, _, _) in zip(gradients, views, strict=True):
                weight.lerp_(self._start[name][rows], lr * self._pulls[candidate])
        # What torch.optim.AdamW(fused=True) comes down to.
        torch._fused_adamw_(
            [weight for weight, _, _ in views],
            [gradient for _, _, gradient in gradients],
            [first for _, first, _ in views],
            [second for _, _, second in views],
            [],
            [self._steps[candidate]] * len(views),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=self._weight_decays[candidate],
            eps=1e-8,
            maximize=False,
        )

    def _rows(self, candidate: int, name: str, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weight and moments of some rows; a step asks for the same ones every time."""
        key = (candidate, name, rows.start, rows.stop)
        known = self._row_views.get(key)
        if known is None:
            weight, first, second = self._views[candidate][name]
            known = self._row_views[key] = (weight[rows], first[rows], second[rows])
        return known

    def finish(self, candidate: int) -> None:
        """Count one update of a candidate."""
        self._steps[candidate].add_(1)

    def moments(self) -> list[Moments]:
        """Return the state to go on from, one a candidate; the tensors are views."""
        return [
            Moments(
                {name: first for name, (_, first, _) in views.items()},
                {name: second for name, (_, _, second) in views.items()},
                int(step) - 1,
            )
            for views, step in zip(self._views, self._steps, strict=True)
        ]

    def _restore(self, moments: Sequence[Moments]) -> None:
        for candidate, saved in enumerate(moments):
            self._steps[candidate].fill_(saved.updates + 1)
            for name, (_, first, second) in self._views[candidate].items():
                first.copy_(saved.first[name])
                second.copy_(saved.second[name])
