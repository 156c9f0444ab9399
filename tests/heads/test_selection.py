"""Accuracy decides, negative log-likelihood breaks ties, and nothing else is looked at."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from safe_ray.heads.selection import selection_score, shows_gain, steps_of

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
