"""Accuracy decides, negative log-likelihood breaks ties, and nothing else is looked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.heads.selection import best_point, selection_score
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


def test_the_best_point_lies_in_the_allowed_range() -> None:
    row = AlphaRow((0.0, 0.5, 1.0), (0.9, 0.4, 0.4), (0.1, 0.8, 0.7))
    assert best_point(row, 10) == 0
    assert best_point(row, 10, low=0.5) == 2
    assert best_point(row, 10, low=0.5, high=0.5) == 1
    with pytest.raises(ValueError, match="no alpha"):
        best_point(row, 10, low=0.6, high=0.7)


def test_of_equal_points_the_one_nearest_to_the_original_pooling_is_taken() -> None:
    row = AlphaRow((0.0, 0.5, 1.0), (0.5, 0.6, 0.6), (1.0, 0.9, 0.9))
    assert best_point(row, 10) == 1
