"""Warm start across tasks: what the first bank of a task borrows from tasks that have ended.

Which tasks those are is a rule of places and not of clocks. The tasks of a sweep have a fixed order
and a window of w of them may be unfinished at once: the task at place i begins when those at the
places 0 to i - w have ended, and borrows from exactly these, whatever else has ended by then. So
the same outcomes give the same suggestions in whatever order trials end, and a sweep that was
killed goes on with those that it would have made anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from safe_ray.search.space import SearchSpace
from safe_ray.specs import HyperParameters, Task
from safe_ray.training.job import BankOutcome

_NEARLY_THE_SAME = 0.1
"""Candidates that differ by at most this share of every searched range count as one."""
_GOOD_SHARE = 0.25
"""The share of a task's candidates that is worth lending; at least one."""


@dataclass(frozen=True)
class Loan:
    """A candidate, and the id of the task that it was good for."""

    candidate: HyperParameters
    source: str


def tasks_at_once(concurrent: int, banks_in_flight: int) -> int:
    """Return how many tasks of a sweep may be unfinished at once.

    As many as it takes to fill the cluster with trials, and as many again but one. The second part
    is begun only where a trial is free and no task before it has a bank ready: so a place for a
    trial stays empty only while one task takes about as long as two others, one after the other.

    Args:
        concurrent: trials that run at once.
        banks_in_flight: trials of one task that may run at once.
    """
    return 2 * -(-concurrent // banks_in_flight) - 1


def lenders(tasks: Sequence[Task], place: int, window: int) -> list[Task]:
    """Return the tasks that the task at a place borrows from, the most alike first.

    Tasks of the same data set come before others; among each, the nearest number of shots (as a
    ratio), then the order of the tasks.

    Args:
        tasks: the sweep's, in the order in which they begin.
        place: of the borrowing task.
        window: see `tasks_at_once`.
    """
    task = tasks[place]

    def unlike(other: Task) -> tuple[bool, float]:
        return other.dataset != task.dataset, abs(math.log(other.shots / task.shots))

    return sorted(tasks[: max(0, place - window + 1)], key=unlike)


def borrow(
    space: SearchSpace,
    task: Task,
    offers: Mapping[Task, Sequence[HyperParameters]],
    size: int,
) -> list[Loan]:
    """Choose what the first bank of a task borrows.

    Each lender offers its `best_quarter`. The best of each lender come before the second best of
    any, and all that the same data set offers before anything of others. A head answers for all
    alphas at once, so candidates that differ in nothing else count as one, as do those whose
    other values are nearly the same.

    Args:
        space: what is searched; what is borrowed is moved into it.
        task: the borrowing one.
        offers: what each lender lends, the best first; the most alike lender first.
        size: candidates of the bank.

    Returns:
        At most half of the bank: the other half stays quasi-random, so that lenders which mislead
        cost half of one bank.
    """
    ranked = [
        (other.dataset != task.dataset, rank, place, Loan(candidate, other.id))
        for place, (other, candidates) in enumerate(offers.items())
        for rank, candidate in enumerate(candidates)
    ]
    chosen: list[Loan] = []
    taken: list[tuple[float, ...]] = []
    for *_, loan in sorted(ranked, key=lambda offer: offer[:3]):
        if len(chosen) >= size // 2:
            break
        candidate = space.clip(loan.candidate)
        trained = _trained(space, candidate)
        if all(_apart(trained, other) > _NEARLY_THE_SAME + 1e-9 for other in taken):
            chosen.append(Loan(candidate, loan.source))
            taken.append(trained)
    return chosen


def best_quarter(banks: Sequence[BankOutcome]) -> list[HyperParameters]:
    """Return the best candidates of a task, each with the best alpha of its row, the best first.

    A head that is best left out of the blend says nothing for its candidate, which is left out.
    """
    scored: list[tuple[float, int, int, HyperParameters]] = []
    trained = 0
    for bank in banks:
        trained += len(bank.candidates)
        for candidate in bank.candidates:
            if candidate.row is None or candidate.best is None:
                continue
            row, best = candidate.row, candidate.best
            if row.alphas[best] > 0:
                good = replace(candidate.hyper_parameters, alpha=row.alphas[best])
                scored.append((-row.score[best], bank.bank, candidate.slot, good))
    scored.sort(key=lambda entry: entry[:3])
    return [entry[3] for entry in scored[: math.ceil(trained * _GOOD_SHARE)]]


def _trained(space: SearchSpace, candidate: HyperParameters) -> tuple[float, ...]:
    """Return where a candidate lies in the searched ranges that its training depends on."""
    position = space.position(candidate)
    return tuple(position[name] for name in sorted(position) if name != "alpha")


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max((abs(a - b) for a, b in zip(one, other, strict=True)), default=0.0)
