from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from safe_ray.report.intervals import (
    crossed_draws,
    mean_interval,
    paired_difference,
    percentile_interval,
)
from tests.report.results import crossed_bootstrap

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


def slow_draws(right: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """The same means, by drawing seeds and images one by one."""
    seeds, images = right.shape
    means = []
    for _ in range(draws):
        rows = generator.integers(0, seeds, seeds)
        columns = generator.integers(0, images, images)
        means.append(right[np.ix_(rows, columns)].astype(np.float64).mean())
    return np.array(means)


def outcomes(generator: np.random.Generator, seeds: int, images: int) -> np.ndarray:
    """Outcomes of seeds that differ, on images that differ: bool [seeds, images]."""
    hardness = generator.normal(0.3, 1.0, images)
    quality = generator.normal(0.0, 0.2, (seeds, 1))
    return quality + hardness + generator.normal(0.0, 0.5, (seeds, images)) > 0


@pytest.mark.parametrize("kind", ["right", "difference", "numbers"])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_resampled_means_are_distributed_as_a_loop_draws_them(kind: str, seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    right = outcomes(generator, seeds, 60)
    if kind == "difference":
        right = right.astype(np.int8) - outcomes(generator, 1, 60).astype(np.int8)
    if kind == "numbers":
        right = generator.normal(size=(seeds, 60))
    drawn = crossed_draws(right, 6000)
    expected = slow_draws(right, 6000, generator)
    assert drawn.shape == (6000,)
    assert drawn.mean() == pytest.approx(right.astype(float).mean(), abs=4 * drawn.std() / 77)
    assert stats.ks_2samp(drawn, expected).statistic < 0.04
    assert drawn.std() == pytest.approx(expected.std(), rel=0.05)


def test_the_variance_is_that_of_seeds_images_and_both() -> None:
    """The exact variance of such a resample's mean, from the sums of squares of the table."""
    right = outcomes(np.random.default_rng(0), 4, 50).astype(np.float64)
    seeds, images = right.shape
    mean = right.mean()
    of_seeds = ((right.mean(1) - mean) ** 2).sum() / seeds**2
    of_images = ((right.mean(0) - mean) ** 2).sum() / images**2
    rest = right - right.mean(1, keepdims=True) - right.mean(0, keepdims=True) + mean
    of_both = (rest**2).sum() / (seeds * images) ** 2
    variance = crossed_draws(right, 20_000).var()
    assert variance == pytest.approx(of_seeds + of_images + of_both, rel=0.05)


def test_the_interval_has_the_percentiles_around_the_mean() -> None:
    right = outcomes(np.random.default_rng(1), 3, 200)
    interval = crossed_bootstrap(right, draws=500, seed=7)
    low, high = np.percentile(crossed_draws(right, 500, 7), [2.5, 97.5])
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.half_width == pytest.approx((high - low) / 2)
    assert (interval.mean, interval.count) == (pytest.approx(right.mean()), 3)
    assert crossed_bootstrap(right, 500, 7) == interval
    assert crossed_bootstrap(right, 500, 8) != interval


def test_one_seed_has_an_interval_over_images_alone() -> None:
    right = np.arange(400)[None] < 300
    interval = crossed_bootstrap(right, draws=20_000)
    # A binomial share of 0.75 over 400 images.
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert interval.half_width == pytest.approx(half, rel=0.05)


def test_nothing_varies_where_all_is_right() -> None:
    interval = crossed_bootstrap(np.ones((3, 10), bool), draws=100)
    assert (interval.low, interval.mean, interval.high) == (1.0, 1.0, 1.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Ten seeds and 300 images, of the population of `outcomes`, whose mean is known."""
    generator = np.random.default_rng(3)
    truth = float(stats.norm.cdf(0.3 / math.sqrt(1.0 + 0.2**2 + 0.5**2)))
    covered = 0
    for number in range(300):
        interval = crossed_bootstrap(outcomes(generator, 10, 300), 400, number)
        covered += interval.low <= truth <= interval.high
    # Binomial: 0.95 +- 0.013 of 300 trials; a share of the seeds' variance is missing.
    assert 0.91 <= covered / 300 <= 0.985


def test_students_t_over_seeds_misses_the_images_where_the_bootstrap_does_not() -> None:
    """Seeds that agree on 100 images say nothing of what other images would give."""
    generator = np.random.default_rng(5)
    truth, covered = 0.5, np.zeros(2)
    for number in range(200):
        right = np.repeat(generator.random((1, 100)) < truth, 3, axis=0)
        right ^= generator.random((3, 100)) < 0.01
        both = (crossed_bootstrap(right, 300, number), mean_interval(right.mean(1).tolist()))
        covered += [interval.low <= truth <= interval.high for interval in both]
    bootstrap, student = covered / 200
    assert bootstrap > 0.9
    assert student < 0.6


def test_50_000_images_take_less_than_200_megabytes() -> None:
    right = np.random.default_rng(0).normal(size=(2, 50_000))
    tracemalloc.start()
    crossed_draws(right, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize(
    "right", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.array([[math.nan]])]
)
def test_outcomes_without_a_mean_are_refused(right: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite and"):
        crossed_draws(right)


def test_percentiles_need_not_lie_evenly_around_the_mean() -> None:
    interval = percentile_interval(2.0, np.array([0.0, 2.0, 10.0]), 3, confidence=1.0 - 1e-12)
    assert (interval.low, interval.high) == (pytest.approx(0.0, abs=1e-9), pytest.approx(10.0))
    assert (interval.mean, interval.half_width) == (2.0, pytest.approx(5.0))
