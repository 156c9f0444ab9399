"""The winner of a task and method: the best validation score over all its banks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safe_ray.report.summary import ValidationResult
from safe_ray.search.choosing import ResultId, choose
from safe_ray.search.space import suggest_bank
from safe_ray.specs import MethodSpec
from safe_ray.training.outcome import BankOutcome, Fit
from tests.search.outcomes import SAFE, SAMPLES, SPACE, outcome_of


def banks() -> list[BankOutcome]:
    finished: list[BankOutcome] = []
    for bank in range(3):
        candidates = suggest_bank(SPACE, finished, [], 4, seed=0)
        finished.append(outcome_of(candidates, bank, failed=[0] if bank == 1 else []))
    return finished


def test_the_winner_has_the_best_score_of_all_candidates() -> None:
    outcomes = banks()
    choice = choose("/sweep", outcomes, SAFE)
    assert choice is not None
    fits = [c.fits["safe"] for outcome in outcomes for c in outcome.candidates if c.fits]
    assert choice.fit.point.score == max(fit.point.score for fit in fits)
    assert choice.winner.at == choice.fit.at
    assert choice.winner.folder is not None
    assert choice.winner.folder.parent.parent == Path("/sweep/banks/task/safe")
    assert choice.values == {**choice.candidate.values, **choice.fit.at}


def test_each_method_has_a_winner_of_its_own() -> None:
    """The head that is best in a blend need not be the best one alone."""
    (outcome,) = banks()[:1]
    other = MethodSpec("tuned_pooling", "tuned pooling", "safe_ray.methods.tuned")

    def with_reversed(place: int, fit: Fit) -> dict[str, Fit]:
        point = replace(fit.point, score=float(place))
        return {"safe": fit, other.name: replace(fit, point=point, at={"alpha": 1.0})}

    both = replace(
        outcome,
        candidates=tuple(
            replace(candidate, fits=with_reversed(place, candidate.fits["safe"]))
            for place, candidate in enumerate(outcome.candidates)
        ),
    )
    choices = [choose("/sweep", [both], method) for method in (SAFE, other)]
    assert [choice.candidate.slot for choice in choices if choice] != [3, 3]
    assert choices[1] is not None
    assert (choices[1].candidate.slot, choices[1].winner.at) == (3, {"alpha": 1.0})
    assert choices[1].id == ResultId("task", "tuned_pooling")


def test_of_equal_candidates_the_first_wins() -> None:
    candidates = suggest_bank(SPACE, [], [], 1, seed=0)
    twins = [outcome_of(candidates, bank) for bank in range(2)]
    choice = choose("/sweep", twins, SAFE)
    assert choice is not None
    assert choice.winner.folder is not None
    assert choice.winner.folder.parent.name == "bank-000"


def test_there_is_no_winner_when_every_candidate_failed() -> None:
    candidates = suggest_bank(SPACE, [], [], 2, seed=0)
    assert choose("/sweep", [outcome_of(candidates, failed=[0, 1])], SAFE) is None
    assert choose("/sweep", [], SAFE) is None


def test_a_choice_says_whether_its_validation_samples_show_a_gain() -> None:
    (candidate,) = outcome_of(suggest_bank(SPACE, [], [], 1, seed=0)).candidates
    fit = candidate.fits["safe"]

    def chosen(gained: int, lost: int) -> ValidationResult:
        known = replace(fit, point=replace(fit.point, gained=gained, lost=lost))
        outcome = BankOutcome(
            "task", "safe", 0, SAMPLES, 1.0, (replace(candidate, fits={"safe": known}),)
        )
        choice = choose("/sweep", [outcome], SAFE)
        assert choice is not None
        return choice.validation

    shown = chosen(8, 1)
    assert (shown.gained, shown.lost, shown.gain_shown) == (8, 1, True)
    assert shown.accuracy == fit.point.accuracy
    assert not chosen(3, 1).gain_shown


def test_a_result_is_called_after_its_task_and_among_several_methods_after_both() -> None:
    assert ResultId("pets-1shot-seed1", "safe").label(1) == "pets-1shot-seed1"
    assert ResultId("pets-1shot-seed1", "safe").label(2) == "pets-1shot-seed1-safe"
