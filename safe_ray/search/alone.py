"""The search of one task in this process: bank after bank, as a sweep with one trial has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import torch

from safe_ray.search.groups import Group
from safe_ray.search.sizing import bank_sizes
from safe_ray.search.space import suggest_bank, task_seed
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import BankOutcome


def search_alone(
    sweep: Path,
    facts: TaskFacts,
    group: Group,
    candidates: int,
    bank: int,
    seed: int,
    device: torch.device,
    on_share: Callable[[float, float | None], None] = lambda share, left: None,
) -> list[BankOutcome]:
    """Train and judge a task's candidates, and return the outcomes of its banks.

    Each bank is suggested from all banks before it. Nothing but the arithmetic's rounding tells its
    candidates from those of a sweep with the same seed and `search.banks_in_flight=1`.

    Args:
        sweep: the folder that holds the task (see `safe_ray.training.job`).
        facts: the task.
        group: the methods; no quantity of their space depends on the shots any more.
        candidates: how many, if anything is searched.
        bank: candidates of a bank.
        seed: `search.seed`.
        device: where to train.
        on_share: called now and then with the share of all candidates that is done, and the seconds
            that are left, if they can be told.

    Raises:
        InputError: the folder cannot be written.
    """
    sizes = bank_sizes((group.candidates(candidates),), bank)
    outcomes: list[BankOutcome] = []
    began = time.monotonic()
    for number, size in enumerate(sizes):
        with _quiet():
            suggested = suggest_bank(
                group.space, outcomes, (), size, task_seed(seed, facts.task.id)
            )
        job = BankJob(str(sweep), facts.task.id, group.name, number, tuple(suggested))

        def tell(share: float, before: int = sum(sizes[:number]), of_bank: int = size) -> None:
            done = (before + share * of_bank) / sum(sizes)
            on_share(done, (time.monotonic() - began) / done * (1 - done) if done else None)

        run_bank(job, device, on_progress=tell)
        outcome = BankOutcome.load(job.folder)
        assert outcome is not None
        outcomes.append(outcome)
        tell(1.0)
    return outcomes


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from announcing each study that a suggestion is made in."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
