"""Accuracy decides, negative log-likelihood breaks ties, and nothing else is looked at."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from safe_ray.heads.selection import best_point, selection_score, shows_gain, steps_of
from safe_ray.specs import AlphaRow

figures = st.floats(0, 1e6, allow_nan=False)


@given(n=st.integers(1, 5000), data=st.data(), nll_a=figures, nll_b=figures)
def test_a_higher_accuracy_always_wins(
    n: int, data: st.DataObject, nll_a: float, nll_b: float
) -> None:
    right = data.draw(st.integers(1, n))
    better = selection_score(right / n, nll_a, n)
    assert better > selection_score((right - 1) / n, nll_b, n)


def test_the_lower_negative_log_likelihood_wins_a_tie() -> None:
    assert selection_score(0.5, 0.9, 10) > selection_score(0.5, 1.1, 10)


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any)


@given(sizes=sizes, data=st.data(), nll_a=figures, nll_b=figures)
def test_a_higher_mean_per_class_accuracy_always_wins_among_classes_of_any_size(
    sizes: list[int], data: st.DataObject, nll_a: float, nll_b: float
) -> None:
    there = [size for size in sizes if size]

    def mean() -> Fraction:
        return sum(
            (Fraction(data.draw(st.integers(0, size)), size) for size in there), Fraction(0)
        ) / len(there)

    low, high = sorted((mean(), mean()))
    assume(low < high)
    steps = steps_of("mean_per_class", sizes)
    assert selection_score(float(high), nll_a, steps) > selection_score(float(low), nll_b, steps)


def test_with_classes_of_one_size_both_metrics_have_the_same_steps() -> None:
    assert steps_of("mean_per_class", [4, 4, 4, 0]) == steps_of("accuracy", [4, 4, 4, 0]) == 12


def row(alphas: tuple[float, ...], score: tuple[float, ...]) -> AlphaRow:
    """Return a row of which all but the score is the same everywhere."""
    same, none = (0.5,) * len(alphas), (0,) * len(alphas)
    return AlphaRow(alphas, same, same, same, none, none, score)


def test_the_best_point_lies_in_the_allowed_range() -> None:
    three = row((0.0, 0.5, 1.0), (0.9, 0.3, 0.4))
    assert best_point(three) == 0
    assert best_point(three, low=0.5) == 2
    assert best_point(three, low=0.5, high=0.5) == 1
    with pytest.raises(ValueError, match="no alpha"):
        best_point(three, low=0.6, high=0.7)


def test_of_equal_points_the_one_nearest_to_the_original_pooling_is_taken() -> None:
    assert best_point(row((0.0, 0.5, 1.0), (0.5, 0.6, 0.6))) == 1


def test_what_is_no_number_is_never_the_best_point() -> None:
    assert best_point(row((0.0, 0.5, 1.0), (math.nan, 0.1, math.nan))) == 1


@settings(deadline=None)
@given(gained=st.integers(0, 60), lost=st.integers(0, 60))
def test_a_gain_is_shown_where_scipys_sign_test_rejects_chance(gained: int, lost: int) -> None:
    together = gained + lost
    p = binomtest(gained, together, 0.5, alternative="greater").pvalue if together else 1.0
    assert shows_gain(gained, lost) == (p <= 0.05)


def test_five_samples_gained_and_none_lost_are_the_fewest_that_show_a_gain() -> None:
    assert shows_gain(5, 0)
    assert not shows_gain(4, 0)
    assert not shows_gain(5, 1)
    assert not shows_gain(0, 0)
