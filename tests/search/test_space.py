"""Suggestions lie in the space, follow from what they may see, and learn from alpha rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from safe_ray.heads.blending import alpha_grid
from safe_ray.search.space import SearchSpace, suggest_bank, trials_of_bank
from tests.search.outcomes import SAMPLES, SPACE, outcome_of


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 10**6), banks=st.integers(0, 2))
def test_candidates_lie_in_the_space_and_on_the_grid(size: int, seed: int, banks: int) -> None:
    finished = []
    for bank in range(banks + 1):
        candidates = suggest_bank(SPACE, finished, [], size, seed, row_points=3)
        assert len(candidates) == size
        for candidate in candidates:
            assert 1e-5 <= candidate.lr <= 1e-2
            assert 1e-4 <= candidate.weight_decay <= 1e-1
            assert 5 <= candidate.epochs <= 50
            assert candidate.alpha in SPACE.alphas
        finished.append(outcome_of(candidates, bank))


def test_the_same_outcomes_give_the_same_suggestions() -> None:
    first = suggest_bank(SPACE, [], [], 8, seed=1, row_points=3)
    assert first == suggest_bank(SPACE, [], [], 8, seed=1, row_points=3)
    assert first != suggest_bank(SPACE, [], [], 8, seed=2, row_points=3)
    seen = [outcome_of(first)]
    second = suggest_bank(SPACE, seen, [], 8, seed=1, row_points=3)
    assert second == suggest_bank(SPACE, seen, [], 8, seed=1, row_points=3)
    assert second != suggest_bank(SPACE, [], [first], 8, seed=1, row_points=3)


def test_the_first_bank_covers_the_space_evenly() -> None:
    candidates = suggest_bank(SPACE, [], [], 16, seed=3, row_points=3)
    decades = [sum(10**e <= c.lr < 10 ** (e + 1) for c in candidates) for e in (-5, -4, -3)]
    assert min(decades) >= 4


def test_later_banks_gather_where_the_validation_figures_are_good() -> None:
    finished = []
    for bank in range(5):
        candidates = suggest_bank(SPACE, finished, [], 8, seed=0, row_points=5)
        finished.append(outcome_of(candidates, bank))

    def near(candidates: list) -> float:
        return sum(2e-4 < c.lr < 5e-3 for c in candidates) / len(candidates)

    first = [c.hyper_parameters for c in finished[0].candidates]
    last = [c.hyper_parameters for c in finished[-1].candidates]
    assert near(last) > near(first)
    assert near(last) >= 0.75


def test_fixed_values_stay_and_are_not_searched() -> None:
    space = replace(SPACE, epochs=12, weight_decay=0.0, alpha=0.5)
    assert set(space.distributions()) == {"lr"}
    for candidate in suggest_bank(space, [], [], 4, seed=0, row_points=3):
        assert (candidate.epochs, candidate.weight_decay, candidate.alpha) == (12, 0.0, 0.5)


def test_nothing_to_search_is_still_a_bank() -> None:
    space = SearchSpace(1e-3, 0.01, 10, 0.5, alpha_grid(3))
    first = suggest_bank(space, [], [], 2, seed=0, row_points=3)
    assert {(c.lr, c.weight_decay, c.epochs, c.alpha) for c in first} == {(1e-3, 0.01, 10, 0.5)}
    suggest_bank(space, [outcome_of(first)], [], 2, seed=0, row_points=3)


def test_a_head_tells_its_study_the_best_of_its_row() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 6, seed=0, row_points=3))
    trials = trials_of_bank(SPACE, outcome, row_points=3)
    for candidate in outcome.candidates:
        told = [t for t in trials if t.user_attrs["slot"] == candidate.slot]
        assert 2 <= len(told) <= 5
        assert told[0].params["alpha"] == candidate.hyper_parameters.alpha
        assert candidate.row is not None
        assert candidate.best is not None
        best = max(told, key=lambda trial: trial.value)
        assert best.user_attrs["accuracy"] == candidate.row.accuracy[candidate.best]
        assert best.params["alpha"] == candidate.row.alphas[candidate.best]


def test_a_fixed_alpha_is_the_only_one_told() -> None:
    space = replace(SPACE, alpha=0.5)
    outcome = outcome_of(suggest_bank(space, [], [], 3, seed=0, row_points=3))
    trials = trials_of_bank(space, outcome, row_points=3)
    assert [t.user_attrs["point"] for t in trials] == ["suggested"] * 3


def test_a_failed_candidate_is_a_failed_trial() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 3, seed=0, row_points=3), failed=[1])
    states = [t.state for t in trials_of_bank(SPACE, outcome, 3) if t.user_attrs["slot"] == 1]
    assert states == [TrialState.FAIL]
    assert len(suggest_bank(SPACE, [outcome], [], 3, seed=0, row_points=3)) == 3


def test_objective_values_order_by_accuracy_first() -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 8, seed=0, row_points=5))
    trials = sorted(trials_of_bank(SPACE, outcome, row_points=5), key=lambda t: t.value)
    accuracies = [t.user_attrs["accuracy"] for t in trials]
    assert accuracies == sorted(accuracies)
    assert pytest.approx(accuracies, abs=1 / SAMPLES) == [t.value for t in trials]
