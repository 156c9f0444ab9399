"""What is searched, and the suggestion of the next bank of candidates.

A bank's suggestion is a pure function of the search space, a seed and the outcomes that the bank
may see. It is made in a study in memory, filled with exactly those outcomes: so it does not depend
on when which trial ended, and a sweep that was killed goes on with the suggestions that it would
have made anyway. The journal (`safe_ray.search.journal`) records what happened.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, QMCSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from safe_ray.files import sha256_hex
from safe_ray.specs import HyperParameters
from safe_ray.training.job import BankOutcome, CandidateOutcome

NAMES = ("lr", "weight_decay", "epochs", "alpha")


@dataclass(frozen=True)
class Range:
    """An interval to search, on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class SearchSpace:
    """Each hyper-parameter is a `Range` to search or a number that stays fixed.

    Attributes:
        alphas: the grid on which every head is evaluated; a searched alpha lies on it.
    """

    lr: Range | float
    weight_decay: Range | float
    epochs: Range | int
    alpha: Range | float
    alphas: tuple[float, ...]

    @property
    def alpha_bounds(self) -> tuple[float, float]:
        """The smallest and the largest alpha that may be chosen."""
        if isinstance(self.alpha, Range):
            return self.alpha.low, self.alpha.high
        return self.alpha, self.alpha

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return Optuna's distributions of the searched hyper-parameters."""
        found: dict[str, BaseDistribution] = {}
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, Range):
                found[name] = FloatDistribution(value.low, value.high, log=value.log)
        if isinstance(self.epochs, Range):
            low, high = int(self.epochs.low), int(self.epochs.high)
            found["epochs"] = IntDistribution(low, high, log=self.epochs.log)
        if isinstance(self.alpha, Range):
            found["alpha"] = FloatDistribution(self.alpha.low, self.alpha.high)
        return found

    def complete(self, suggested: Mapping[str, float]) -> HyperParameters:
        """Fill a suggestion up with the fixed values, and move its alpha onto the grid."""
        values = {name: suggested.get(name, getattr(self, name)) for name in NAMES}
        low, high = self.alpha_bounds
        grid = [alpha for alpha in self.alphas if low - 1e-9 <= alpha <= high + 1e-9]
        return HyperParameters(
            lr=float(values["lr"]),
            weight_decay=float(values["weight_decay"]),
            epochs=int(values["epochs"]),
            alpha=min(grid, key=lambda alpha: abs(alpha - values["alpha"])),
        )


def task_seed(seed: int, task_id: str) -> int:
    """Return a seed of the task's own, so that no two tasks share their random numbers."""
    return int(sha256_hex(f"{seed}/{task_id}".encode())[:8], 16)


def suggest_bank(
    space: SearchSpace,
    finished: Sequence[BankOutcome],
    pending: Sequence[Sequence[HyperParameters]],
    size: int,
    seed: int,
    row_points: int,
) -> list[HyperParameters]:
    """Suggest the candidates of a task's next bank.

    Args:
        space: what is searched.
        finished: outcomes that the bank may see, in the order of the banks.
        pending: candidates of earlier banks that are still being trained.
        size: how many candidates to suggest.
        seed: the task's; each bank derives its own from it.
        row_points: see `trials_of_bank`.

    Returns:
        `size` candidates: scrambled Sobol points for the first bank (Optuna's `QMCSampler`), the
        multivariate tree-structured Parzen estimator for the later ones (`TPESampler`; Bergstra
        et al., 2011), which takes the pending candidates for poor ones so as not to repeat them.
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
            sampler = TPESampler(multivariate=True, seed=derived)
        study = optuna.create_study(direction="maximize", sampler=sampler)
    for outcome in finished:
        study.add_trials(trials_of_bank(space, outcome, row_points))
    for candidates in pending:
        study.add_trials([_running(space, candidate) for candidate in candidates])
    return [space.complete(study.ask(distributions).params) for _ in range(size)]


def trials_of_bank(space: SearchSpace, outcome: BankOutcome, row_points: int) -> list[FrozenTrial]:
    """Return a bank's outcome as Optuna trials.

    A trained head answers for its whole alpha row, so each candidate yields its suggested alpha,
    its best one, and up to `row_points` more that are evenly spaced; all of 101 would only slow
    the sampler down. The value is the point's score. A failed candidate yields a failed trial.
    """
    return [
        trial
        for candidate in outcome.candidates
        for trial in _trials_of_candidate(space, outcome, candidate, row_points)
    ]


def _trials_of_candidate(
    space: SearchSpace, outcome: BankOutcome, candidate: CandidateOutcome, row_points: int
) -> list[FrozenTrial]:
    about = {"task": outcome.task_id, "bank": outcome.bank, "slot": candidate.slot}
    distributions = space.distributions()
    if candidate.row is None or candidate.best is None:
        parameters = _parameters(distributions, candidate.hyper_parameters)
        return [
            create_trial(
                params=parameters,
                distributions=distributions,
                state=TrialState.FAIL,
                user_attrs={**about, "point": "failed"},
            )
        ]
    row = candidate.row
    suggested = min(
        range(len(row.alphas)),
        key=lambda i: abs(row.alphas[i] - candidate.hyper_parameters.alpha),
    )
    points = {suggested: "suggested"}
    if isinstance(space.alpha, Range):
        points.setdefault(candidate.best, "best of row")
        low, high = space.alpha_bounds
        allowed = [i for i, a in enumerate(row.alphas) if low - 1e-9 <= a <= high + 1e-9]
        # Not the row's first point: where that is alpha = 0, it is the same for every head.
        for place in range(1, row_points + 1):
            points.setdefault(allowed[(len(allowed) - 1) * place // row_points], "row")
    trials = []
    for index, kind in points.items():
        at = HyperParameters(
            lr=candidate.hyper_parameters.lr,
            weight_decay=candidate.hyper_parameters.weight_decay,
            epochs=candidate.hyper_parameters.epochs,
            alpha=row.alphas[index],
        )
        point = row.at(index)
        trials.append(
            create_trial(
                params=_parameters(distributions, at),
                distributions=distributions,
                value=point.score,
                user_attrs={
                    **about,
                    "point": kind,
                    "accuracy": point.accuracy,
                    "mean_per_class": point.mean_per_class,
                    "nll": point.nll,
                },
            )
        )
    return trials


def _running(space: SearchSpace, candidate: HyperParameters) -> FrozenTrial:
    distributions = space.distributions()
    return create_trial(
        params=_parameters(distributions, candidate),
        distributions=distributions,
        state=TrialState.RUNNING,
    )


def _parameters(
    distributions: Mapping[str, BaseDistribution], candidate: HyperParameters
) -> dict[str, float]:
    return {name: getattr(candidate, name) for name in distributions}
