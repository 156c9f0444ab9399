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
from torch.optim.adamw import adamw

from safe_ray.heads.bank import Bank


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


class BankOptimiser:
    """AdamW over the candidates of a bank (betas 0.9 and 0.999, epsilon 1e-8).

    Args:
        bank: the bank whose trained parameters are updated in place.
        weight_decays: one a candidate, decoupled as in AdamW (Loshchilov and Hutter, 2019).
        moments: where to go on from, one a candidate, or None to begin.
    """

    def __init__(
        self,
        bank: Bank,
        weight_decays: Sequence[float],
        moments: Sequence[Moments] | None = None,
    ) -> None:
        self._parameters = {
            name: parameter
            for name in bank.trained
            if isinstance(parameter := bank.stacked(name), nn.Parameter)
        }
        self._device = bank.classifier.device
        stacked = {
            name: (parameter.detach(), torch.zeros_like(parameter), torch.zeros_like(parameter))
            for name, parameter in self._parameters.items()
        }
        # Weight and moments of each parameter of each candidate.
        self._views = [
            {name: (w[i], m[i], v[i]) for name, (w, m, v) in stacked.items()}
            for i in range(len(bank))
        ]
        self._weight_decays = list(weight_decays)
        self._updates = [0] * len(bank)
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
                (name, slice(None), parameter.grad[candidate])
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
            gradients: parameters by name, which rows of each, and the gradients of those rows.
            lr: the learning rate.
        """
        views = [(*self._views[candidate][name], rows, g) for name, rows, g in gradients]
        steps = torch.full((len(views),), float(self._updates[candidate]), device=self._device)
        adamw(
            [weight[rows] for weight, _, _, rows, _ in views],
            [gradient for _, _, _, _, gradient in views],
            [first[rows] for _, first, _, rows, _ in views],
            [second[rows] for _, _, second, rows, _ in views],
            [],
            list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=self._weight_decays[candidate],
            eps=1e-8,
            maximize=False,
        )

    def finish(self, candidate: int) -> None:
        """Count one update of a candidate."""
        self._updates[candidate] += 1

    def moments(self) -> list[Moments]:
        """Return the state to go on from, one a candidate; the tensors are views."""
        return [
            Moments(
                {name: first for name, (_, first, _) in views.items()},
                {name: second for name, (_, _, second) in views.items()},
                updates,
            )
            for views, updates in zip(self._views, self._updates, strict=True)
        ]

    def _restore(self, moments: Sequence[Moments]) -> None:
        for candidate, saved in enumerate(moments):
            self._updates[candidate] = saved.updates
            for name, (_, first, second) in self._views[candidate].items():
                first.copy_(saved.first[name])
                second.copy_(saved.second[name])
