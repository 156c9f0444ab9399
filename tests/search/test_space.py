"""Suggestions lie in the space, follow from what they may see, and learn from what heads gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from safe_ray.search.space import SearchSpace, suggest_bank, trials_of_bank, trials_of_banks
from safe_ray.specs import Range, Values
from tests.search.outcomes import SAMPLES, SPACE, outcome_of


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 10**6), banks=st.integers(0, 2))
def test_candidates_lie_in_the_space(size: int, seed: int, banks: int) -> None:
    finished = []
    for bank in range(banks + 1):
        candidates = suggest_bank(SPACE, finished, [], size, seed)
        assert len(candidates) == size
        for candidate in candidates:
            assert list(candidate) == ["lr", "weight_decay", "epochs"]
            assert 1e-5 <= candidate["lr"] <= 1e-2
            assert 1e-4 <= candidate["weight_decay"] <= 1e-1
            assert 5 <= candidate["epochs"] <= 50
            assert isinstance(candidate["epochs"], int)
        finished.append(outcome_of(candidates, bank))


def test_the_same_outcomes_give_the_same_suggestions() -> None:
    first = suggest_bank(SPACE, [], [], 8, seed=1)
    assert first == suggest_bank(SPACE, [], [], 8, seed=1)
    assert first != suggest_bank(SPACE, [], [], 8, seed=2)
    seen = [outcome_of(first)]
    second = suggest_bank(SPACE, seen, [], 8, seed=1)
    assert second == suggest_bank(SPACE, seen, [], 8, seed=1)
    assert second != suggest_bank(SPACE, [], [first], 8, seed=1)


def test_the_first_bank_covers_the_space_evenly() -> None:
    candidates = suggest_bank(SPACE, [], [], 16, seed=3)
    decades = [sum(10**e <= c["lr"] < 10 ** (e + 1) for c in candidates) for e in (-5, -4, -3)]
    assert min(decades) >= 4


def test_later_banks_gather_where_the_validation_figures_are_good() -> None:
    def near(candidates: Sequence[Values]) -> float:
        return sum(2e-4 < c["lr"] < 5e-3 for c in candidates) / len(candidates)

    first, last = [], []
    for seed in range(4):
        finished = []
        for bank in range(5):
            candidates = suggest_bank(SPACE, finished, [], 8, seed=seed)
            finished.append(outcome_of(candidates, bank))
        first += [c.values for c in finished[0].candidates]
        last += [c.values for c in finished[-1].candidates]
    assert near(last) > near(first)
    assert near(last) >= 0.7


def test_fixed_values_stay_and_are_not_searched() -> None:
    fixed = {**SPACE.quantities, "epochs": 12, "weight_decay": 0.0}
    space = replace(SPACE, quantities=fixed, knobs={"alpha": (0.5,)})
    assert set(space.distributions()) == {"lr"}
    for candidate in suggest_bank(space, [], [], 4, seed=0):
        assert (candidate["epochs"], candidate["weight_decay"]) == (12, 0.0)


def test_nothing_to_search_is_still_a_bank() -> None:
    space = SearchSpace({"lr": 1e-3, "weight_decay": 0.01, "epochs": 10})
    assert not space.is_searched
    first = suggest_bank(space, [], [], 2, seed=0)
    assert first == [{"lr": 1e-3, "weight_decay": 0.01, "epochs": 10}] * 2
    suggest_bank(space, [outcome_of(first)], [], 2, seed=0)


def test_a_quantity_of_any_name_is_searched() -> None:
    space = SearchSpace({"key_lr": Range(1e-4, 1e-2, log=True), "key_epochs": Range(5, 9)})
    (candidate,) = suggest_bank(space, [], [], 1, seed=0)
    assert 1e-4 <= candidate["key_lr"] <= 1e-2
    assert 5 <= candidate["key_epochs"] <= 9


def test_a_head_is_one_trial_with_the_alpha_that_its_row_gives() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 6, seed=0))
    trials = trials_of_bank(SPACE, outcome)
    assert len(trials) == 6
    for trial, candidate in zip(trials, outcome.candidates, strict=True):
        fit = candidate.fits["safe"]
        assert trial.params == {**candidate.values, **fit.at}
        assert trial.value == fit.point.score
        assert trial.user_attrs["accuracy"] == fit.point.accuracy == max(fit.rows["alpha"].accuracy)


def test_a_candidate_that_diverged_is_told_as_worse_than_all_before_it() -> None:
    first = outcome_of(suggest_bank(SPACE, [], [], 4, seed=0))
    second = outcome_of(suggest_bank(SPACE, [first], [], 3, seed=0), bank=1, failed=[1])
    trials = trials_of_banks(SPACE, [first, second])
    (diverged,) = (trial for trial in trials if trial.user_attrs.get("diverged"))
    assert diverged.state == TrialState.COMPLETE
    others = [trial.value for trial in trials if trial is not diverged]
    assert diverged.value == min(others) - 1
    assert len(suggest_bank(SPACE, [first, second], [], 3, seed=0)) == 3


def test_a_bank_of_which_nothing_is_left_is_told_and_not_feared() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 3, seed=0), failed=[0, 1, 2])
    assert [trial.value for trial in trials_of_bank(SPACE, outcome)] == [-1.0] * 3
    assert len(suggest_bank(SPACE, [outcome], [], 3, seed=0)) == 3


def test_candidates_of_one_bank_keep_away_from_each_other() -> None:
    """Without the constant liar, the estimator suggests the best place again and again."""
    finished = [outcome_of(suggest_bank(SPACE, [], [], 8, seed=0))]
    candidates = suggest_bank(SPACE, finished, [], 8, seed=0)
    assert len({tuple(candidate.values()) for candidate in candidates}) == 8


def test_objective_values_order_by_accuracy_first() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 8, seed=0))
    trials = sorted(trials_of_bank(SPACE, outcome), key=lambda t: t.value)
    accuracies = [t.user_attrs["accuracy"] for t in trials]
    assert accuracies == sorted(accuracies)
    assert pytest.approx(accuracies, abs=1 / SAMPLES) == [t.value for t in trials]
