"""Outcomes of banks as training would leave them, from a known landscape of validation figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import repeat

from safe_ray.heads.blending import alpha_grid
from safe_ray.heads.selection import best_point, selection_score
from safe_ray.search.space import Range, SearchSpace
from safe_ray.specs import AlphaRow, HyperParameters
from safe_ray.training.job import BankOutcome, CandidateOutcome

SPACE = SearchSpace(
    lr=Range(1e-5, 1e-2, log=True),
    weight_decay=Range(1e-4, 1e-1, log=True),
    epochs=Range(5, 50, log=True),
    alpha=Range(0.0, 1.0),
    alphas=alpha_grid(21),
)
SAMPLES = 40


def row_of(candidate: HyperParameters) -> AlphaRow:
    """Best at lr = 1e-3 and alpha = 0.6."""
    miss = abs(math.log10(candidate.lr) + 3) / 3
    accuracy, nll = [], []
    none = (0,) * len(SPACE.alphas)
    for alpha in SPACE.alphas:
        quality = 0.4 + 0.5 * alpha * (1 - miss) - 0.4 * max(0.0, alpha - 0.6) * (1 + miss)
        accuracy.append(round(quality * SAMPLES) / SAMPLES)
        nll.append(2.0 - quality)
    score = map(selection_score, accuracy, nll, repeat(SAMPLES))
    return AlphaRow(
        SPACE.alphas, tuple(accuracy), tuple(accuracy), tuple(nll), none, none, tuple(score)
    )


def outcome_of(
    candidates: Sequence[HyperParameters],
    bank: int = 0,
    task_id: str = "task",
    failed: Sequence[int] = (),
) -> BankOutcome:
    results = []
    for slot, candidate in enumerate(candidates):
        if slot in failed:
            results.append(CandidateOutcome(slot, candidate, True, (math.nan,), None, None, None))
            continue
        row = row_of(candidate)
        best = best_point(row)
        name = f"candidate-{slot:02d}"
        results.append(CandidateOutcome(slot, candidate, False, (1.0, 0.5), row, best, name))
    return BankOutcome(task_id, bank, SAMPLES, 1.0, tuple(results))
