"""The winner of a task: the best validation score over all its banks."""

from __future__ import annotations

from pathlib import Path

from safe_ray.heads.selection import selection_score
from safe_ray.search.recording import choose
from safe_ray.search.space import suggest_bank
from safe_ray.training.job import BankOutcome
from tests.search.outcomes import SAMPLES, SPACE, outcome_of


def banks() -> list[BankOutcome]:
    finished: list[BankOutcome] = []
    for bank in range(3):
        candidates = suggest_bank(SPACE, finished, [], 4, seed=0, row_points=3)
        finished.append(outcome_of(candidates, bank, failed=[0] if bank == 1 else []))
    return finished


def test_the_winner_has_the_best_score_of_all_rows() -> None:
    outcomes = banks()
    choice = choose("/sweep", outcomes)
    assert choice is not None
    scores = [
        selection_score(accuracy, nll, SAMPLES)
        for outcome in outcomes
        for candidate in outcome.candidates
        if candidate.row is not None
        for accuracy, nll in zip(candidate.row.accuracy, candidate.row.nll, strict=True)
    ]
    assert selection_score(*choice.validation, SAMPLES) == max(scores)
    row = choice.candidate.row
    assert row is not None
    assert choice.candidate.best is not None
    assert choice.winner.alpha == row.alphas[choice.candidate.best]
    assert choice.winner.folder.parent.parent == Path("/sweep/banks/task")


def test_of_equal_candidates_the_first_wins() -> None:
    candidates = suggest_bank(SPACE, [], [], 1, seed=0, row_points=3)
    twins = [outcome_of(candidates, bank) for bank in range(2)]
    choice = choose("/sweep", twins)
    assert choice is not None
    assert choice.winner.folder.parent.name == "bank-000"


def test_there_is_no_winner_when_every_candidate_failed() -> None:
    candidates = suggest_bank(SPACE, [], [], 2, seed=0, row_points=3)
    assert choose("/sweep", [outcome_of(candidates, failed=[0, 1])]) is None
    assert choose("/sweep", []) is None
