"""AdamW with a learning rate, a weight decay and a schedule for each candidate of a bank.

The update is torch's own fused AdamW: every candidate is a parameter group of views into the
bank's stacked weights, so a head of a bank is updated exactly as it would be alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
        self._stacked = {
            name: parameter
            for name in bank.trained
            if isinstance(parameter := bank.stacked(name), nn.Parameter)
        }
        self._views = [
            {name: stacked.detach()[index] for name, stacked in self._stacked.items()}
            for index in range(len(bank))
        ]
        self._adamw = torch.optim.AdamW(
            [
                {"params": list(views.values()), "lr": 0.0, "weight_decay": decay}
                for views, decay in zip(self._views, weight_decays, strict=True)
            ],
            betas=(0.9, 0.999),
            eps=1e-8,
            fused=True,
        )
        if moments is not None:
            self._restore(moments)

    def step(self, learning_rates: Sequence[float]) -> None:
        """Update every candidate with its learning rate, and forget the gradients."""
        for index, (group, lr) in enumerate(
            zip(self._adamw.param_groups, learning_rates, strict=True)
        ):
            group["lr"] = lr
            for name, view in self._views[index].items():
                gradient = self._stacked[name].grad
                view.grad = None if gradient is None else gradient[index]
        self._adamw.step()
        for stacked in self._stacked.values():
            stacked.grad = None

    def moments(self) -> list[Moments]:
        """Return the state to go on from, one a candidate; the tensors are views."""
        result = []
        for views in self._views:
            states = {name: self._adamw.state[view] for name, view in views.items()}
            empty = {name: torch.zeros_like(view) for name, view in views.items()}
            first = {name: s["exp_avg"] if s else empty[name] for name, s in states.items()}
            second = {name: s["exp_avg_sq"] if s else empty[name] for name, s in states.items()}
            updates = next((int(s["step"]) for s in states.values() if s), 0)
            result.append(Moments(first, second, updates))
        return result

    def _restore(self, moments: Sequence[Moments]) -> None:
        for views, saved in zip(self._views, moments, strict=True):
            for name, view in views.items():
                self._adamw.state[view] = {
                    "step": torch.tensor(float(saved.updates), device=view.device),
                    "exp_avg": saved.first[name].to(view).clone(),
                    "exp_avg_sq": saved.second[name].to(view).clone(),
                }
