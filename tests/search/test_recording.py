"""The winner of a task: the best validation score over all its banks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safe_ray.report import Accuracies, ValidationResult
from safe_ray.search.recording import accuracies_of, choose
from safe_ray.search.space import suggest_bank
from safe_ray.search.testing import TestCounts
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
        score
        for outcome in outcomes
        for candidate in outcome.candidates
        if candidate.row is not None
        for score in candidate.row.score
    ]
    assert choice.point.score == max(scores)
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


def test_a_choice_says_whether_its_validation_samples_show_a_gain() -> None:
    (candidate,) = outcome_of(suggest_bank(SPACE, [], [], 1, seed=0, row_points=3)).candidates
    row, best = candidate.row, candidate.best
    assert row is not None
    assert best is not None

    def chosen(gained: int, lost: int) -> ValidationResult:
        counts = {
            "gained": (*row.gained[:best], gained, *row.gained[best + 1 :]),
            "lost": (*row.lost[:best], lost, *row.lost[best + 1 :]),
        }
        known = replace(candidate, row=replace(row, **counts))
        choice = choose("/sweep", [BankOutcome("task", 0, SAMPLES, 1.0, (known,))])
        assert choice is not None
        return choice.validation

    shown = chosen(8, 1)
    assert (shown.gained, shown.lost, shown.gain_shown) == (8, 1, True)
    assert shown.accuracy == row.accuracy[best]
    assert not chosen(3, 1).gain_shown


def test_both_accuracies_follow_from_the_counts_of_each_class() -> None:
    counts = TestCounts(
        zero_shot=(8, 0, 0), tuned_only=(0, 2, 0), safe=(6, 1, 0), samples=(8, 2, 0)
    )
    test = accuracies_of(counts)
    assert (test.zero_shot, test.tuned_only, test.safe, test.samples) == (0.8, 0.2, 0.7, 10)
    assert test.mean_per_class == Accuracies(zero_shot=0.5, tuned_only=0.5, safe=0.625)
