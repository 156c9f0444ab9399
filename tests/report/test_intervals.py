from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safe_ray.report.intervals import mean_interval, paired_difference

accuracies = st.floats(0.0, 1.0)
samples = st.lists(accuracies, min_size=3, max_size=30)
confidences = st.floats(0.5, 0.999)


@given(samples, confidences)
def test_the_interval_is_scipys(values: list[float], confidence: float) -> None:
    interval = mean_interval(values, confidence)
    scale = float(stats.sem(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * scale
    assert interval.count == len(values)
    assert interval.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert interval.half_width == pytest.approx(half, rel=1e-6, abs=1e-12)
    if scale > 1e-9:
        low, high = stats.t.interval(
            confidence, len(values) - 1, loc=sum(values) / len(values), scale=scale
        )
        assert interval.low == pytest.approx(low, rel=1e-6, abs=1e-9)
        assert interval.high == pytest.approx(high, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=3, max_size=30))
def test_a_paired_difference_is_scipys_paired_t(pairs: list[tuple[float, float]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    interval = paired_difference(first, second)
    differences = [a - b for a, b in pairs]
    if float(stats.sem(differences)) > 1e-6:
        expected = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert interval.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
        assert interval.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(values: list[float], random) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert mean_interval(shuffled).mean == mean_interval(values).mean
    assert mean_interval(shuffled).half_width == pytest.approx(mean_interval(values).half_width)


@given(st.lists(accuracies, min_size=1, max_size=2))
def test_fewer_than_three_seeds_have_no_interval(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert interval.count == len(values)
    assert (interval.half_width, interval.low, interval.high) == (None, None, None)


@given(accuracies, st.integers(3, 10))
def test_equal_values_have_a_width_of_zero(value: float, count: int) -> None:
    assert mean_interval([value] * count).half_width == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError):
        paired_difference([0.1, 0.2], [0.1])
