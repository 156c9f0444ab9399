"""What is searched, and the suggestion of the next bank of candidates.

A bank's suggestion is a pure function of the search space, a seed and the outcomes that the bank
may see. It is made in a study in memory, filled with exactly those outcomes: so it does not depend
on when which trial ended, and a sweep that was killed goes on with the suggestions that it would
have made anyway. The journal (`safe_ray.search.journal`) records what happened.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from safe_ray.files import sha256_hex
from safe_ray.specs import Range, Values
from safe_ray.training.outcome import BankOutcome, CandidateOutcome, Fit

PER_SHOT: Final = "1/shots"
"""A quantity that is one over the shots of the task."""

Quantity = Range | float | Literal["1/shots"]


@dataclass(frozen=True)
class SearchSpace:
    """What the candidates of a group of methods are made of.

    Attributes:
        quantities: each is a `Range` to search, a number that stays fixed, or `PER_SHOT`.
        knobs: the values that each knob of the group's first method may take. They are solved and
            not searched; a study is told what they came to.
        method: the first method's name, whose score the search maximises.
    """

    quantities: Mapping[str, Quantity]
    knobs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    method: str = "safe"

    @property
    def is_searched(self) -> bool:
        """Whether two candidates could differ."""
        return any(isinstance(value, Range) for value in self.quantities.values())

    def for_shots(self, shots: float) -> SearchSpace:
        """Return the space of a task, whose shots are known; of all images, their mean a class."""
        known = {
            name: 1.0 / shots if value == PER_SHOT else value
            for name, value in self.quantities.items()
        }
        return replace(self, quantities=known)

    def with_most(self, name: str, most: int) -> SearchSpace:
        """Return the space in which a quantity goes up to `most` only."""
        value = self.quantities[name]
        cut: Quantity
        if isinstance(value, Range):
            high = min(value.high, most)
            cut = high if high <= value.low else replace(value, high=high)
        else:
            cut = value if isinstance(value, str) else min(value, most)
        return replace(self, quantities={**self.quantities, name: cut})

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of what is searched, and of the knobs that are open."""
        found: dict[str, BaseDistribution] = {}
        for name, value in self.quantities.items():
            if isinstance(value, Range) and value.integer:
                found[name] = IntDistribution(int(value.low), int(value.high), log=value.log)
            elif isinstance(value, Range):
                found[name] = FloatDistribution(value.low, value.high, log=value.log)
        for name, values in self.knobs.items():
            if len(values) > 1:
                found[name] = FloatDistribution(min(values), max(values))
        return found

    def complete(self, suggested: Mapping[str, float]) -> dict[str, float]:
        """Return a candidate: what is suggested of the quantities, and those that are fixed.

        Raises:
            ValueError: a quantity depends on the shots, and `for_shots` was not asked for.
        """
        candidate: dict[str, float] = {}
        for name, value in self.quantities.items():
            if isinstance(value, str):
                raise ValueError(f"{name} is {value}, and the shots are not known")
            candidate[name] = suggested[name] if isinstance(value, Range) else value
        return candidate


def task_seed(seed: int, task_id: str) -> int:
    """Return a seed of the task's own, so that no two tasks share their random numbers."""
    return int(sha256_hex(f"{seed}/{task_id}".encode())[:8], 16)


def suggest_bank(
    space: SearchSpace,
    finished: Sequence[BankOutcome],
    pending: Sequence[Sequence[Values]],
    size: int,
    seed: int,
) -> list[dict[str, float]]:
    """Suggest the candidates of the next bank of a task.

    Args:
        space: what is searched.
        finished: outcomes that the bank may see, in the order of the banks.
        pending: candidates of earlier banks that are still being trained.
        size: how many candidates to suggest.
        seed: the task's; each bank derives its own from it.

    Returns:
        `size` candidates: scrambled Sobol points for the first bank (Optuna's `QMCSampler`), the
        multivariate tree-structured Parzen estimator for the later ones (`TPESampler`; Bergstra
        et al., 2011). It takes the pending candidates, and those of the same bank, for poor ones
        (its constant liar), so as not to repeat them.
    """
    distributions = space.distributions()
    place = len(finished) + len(pending)
    derived = int(sha256_hex(f"{seed}/{place}".encode())[:8], 16)
    sampler: BaseSampler
    with warnings.catch_warnings():
        # Both samplers are marked experimental in part.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if place == 0:
            sampler = QMCSampler(scramble=True, seed=derived, warn_independent_sampling=False)
        else:
            sampler = TPESampler(
                multivariate=True, constant_liar=True, n_startup_trials=1, seed=derived
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials_of_banks(space, finished))
    for candidates in pending:
        study.add_trials([_running(space, candidate) for candidate in candidates])
    return [space.complete(study.ask(distributions).params) for _ in range(size)]


def trials_of_banks(space: SearchSpace, outcomes: Sequence[BankOutcome]) -> list[FrozenTrial]:
    """Return the outcomes of a task's banks as Optuna trials, one a candidate.

    A trial's value is the score of the group's first method, with the knobs that the validation
    samples decided. A candidate that diverged is told as worse, by 1, than the worst of those
    before it and beside it: an estimator that did not hear of it would suggest its like again.
    """
    return [
        trial
        for place, outcome in enumerate(outcomes)
        for trial in trials_of_bank(space, outcome, outcomes[:place])
    ]


def trials_of_bank(
    space: SearchSpace, outcome: BankOutcome, before: Sequence[BankOutcome] = ()
) -> list[FrozenTrial]:
    """Return one bank's part of `trials_of_banks`; `before` are the banks that precede it."""
    scores = [
        fit.point.score
        for each in (*before, outcome)
        for candidate in each.candidates
        if (fit := candidate.fits.get(space.method)) is not None
    ]
    poor = min(scores, default=0.0) - 1.0
    return [_trial(space, outcome, candidate, poor) for candidate in outcome.candidates]


def _trial(
    space: SearchSpace, outcome: BankOutcome, candidate: CandidateOutcome, poor: float
) -> FrozenTrial:
    distributions = space.distributions()
    about = {"task": outcome.task_id, "bank": outcome.bank, "slot": candidate.slot}
    fit = candidate.fits.get(space.method)
    if fit is None:
        return create_trial(
            params=_parameters(space, candidate.values),
            distributions=distributions,
            value=poor,
            user_attrs={**about, "diverged": True},
        )
    return create_trial(
        params=_parameters(space, candidate.values, fit),
        distributions=distributions,
        value=fit.point.score,
        user_attrs={
            **about,
            "accuracy": fit.point.accuracy,
            "mean_per_class": fit.point.mean_per_class,
            "nll": fit.point.nll,
        },
    )


def _running(space: SearchSpace, candidate: Values) -> FrozenTrial:
    return create_trial(
        params=_parameters(space, candidate),
        distributions=space.distributions(),
        state=TrialState.RUNNING,
    )


def _parameters(space: SearchSpace, candidate: Values, fit: Fit | None = None) -> dict[str, float]:
    """Return a candidate's parameters; a knob that nobody has solved is in its grid's middle."""
    at = {name: values[len(values) // 2] for name, values in space.knobs.items()}
    known = {**at, **(fit.at if fit is not None else {}), **candidate}
    return {name: known[name] for name in space.distributions()}
