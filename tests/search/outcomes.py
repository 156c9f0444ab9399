"""Outcomes of banks as training would leave them, from a known landscape of validation figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safe_ray.heads.blending import alpha_grid
from safe_ray.heads.selection import selection_score
from safe_ray.methods.base import Recipe
from safe_ray.search.groups import Group
from safe_ray.search.space import SearchSpace
from safe_ray.specs import KnobRow, MethodSpec, Point, Range, Values
from safe_ray.training.outcome import BankOutcome, CandidateOutcome, Fit

ALPHAS = alpha_grid(21)
SPACE = SearchSpace(
    quantities={
        "lr": Range(1e-5, 1e-2, log=True),
        "weight_decay": Range(1e-4, 1e-1, log=True),
        "epochs": Range(5, 50, log=True, integer=True),
    },
    knobs={"alpha": ALPHAS},
)
SAFE = MethodSpec("safe", "SAFE", "safe_ray.methods.tuned", {}, {"alpha": ALPHAS})
GROUP = Group((SAFE,), Recipe(), SPACE)
SAMPLES = 40


def row_of(candidate: Values) -> KnobRow:
    """Best at lr = 1e-3 and alpha = 0.6."""
    miss = abs(math.log10(candidate["lr"]) + 3) / 3
    points = []
    for alpha in ALPHAS:
        quality = 0.4 + 0.5 * alpha * (1 - miss) - 0.4 * max(0.0, alpha - 0.6) * (1 + miss)
        accuracy, nll = round(quality * SAMPLES) / SAMPLES, 2.0 - quality
        score = selection_score(accuracy, nll, SAMPLES)
        points.append(Point(accuracy, accuracy, nll, 0, 0, score))
    return KnobRow.of(ALPHAS, points)


def fit_of(candidate: Values, slot: int, method: str = "safe") -> Fit:
    row = row_of(candidate)
    best = max(range(len(ALPHAS)), key=lambda index: (row.score[index], -index))
    name = f"candidate-{slot:02d}-{method}"
    return Fit({"alpha": ALPHAS[best]}, row.at(best), {"alpha": row}, name)


def outcome_of(
    candidates: Sequence[Values],
    bank: int = 0,
    task_id: str = "task",
    failed: Sequence[int] = (),
    group: str = "safe",
) -> BankOutcome:
    results = []
    for slot, candidate in enumerate(candidates):
        if slot in failed:
            results.append(CandidateOutcome(slot, candidate, True, (math.nan,), {}))
        else:
            fits = {group: fit_of(candidate, slot, group)}
            results.append(CandidateOutcome(slot, candidate, False, (1.0, 0.5), fits))
    return BankOutcome(task_id, group, bank, SAMPLES, 1.0, tuple(results))
