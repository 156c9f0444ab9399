from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from safe_ray.comparison.statistics import (
    bootstrap,
    cliques,
    critical_difference,
    dataset_means,
    friedman,
    holm,
    mean_of_present,
    ranks,
    signed_rank_p,
)

NAN = math.nan


def test_a_mean_is_over_what_is_there():
    values = np.array([[1.0, 3.0], [NAN, 5.0], [NAN, NAN]])
    assert mean_of_present(values, 1)[:2].tolist() == [2.0, 5.0]
    assert np.isnan(mean_of_present(values, 1)[2])
    # Two shots with different seeds count alike: (1 + 3) / 2 and 8, then their mean.
    assert dataset_means(np.array([[1.0, 3.0], [NAN, 8.0]])) == 5.0


@pytest.mark.parametrize("count", [1, 4, 5, 11, 30])
def test_signed_ranks_without_ties_agree_with_scipys_exact_test(count: int):
    random = np.random.default_rng(count)
    for shift in (0.0, 0.4):
        values = random.normal(shift, 1.0, count)
        expected = stats.wilcoxon(values, method="exact").pvalue
        assert signed_rank_p(values.tolist()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("values", [(1, 1, -1, 2, 2, 3, -4), (0.1, -0.1, 0.2, 0.3, 0.3), (2, 2, 2)])
def test_signed_ranks_with_ties_agree_with_every_sign_written_out(values):
    rank = stats.rankdata(np.abs(values))
    observed = min(rank[np.array(values) > 0].sum(), rank[np.array(values) < 0].sum())
    sums = [np.dot(rank, signs) for signs in itertools.product((0, 1), repeat=len(values))]
    expected = min(1.0, 2 * np.mean(np.array(sums) <= observed + 1e-9))
    assert signed_rank_p(values) == pytest.approx(expected)


def test_zeros_are_left_out_of_signed_ranks():
    assert signed_rank_p([0.0, 0.3, 0.0, 0.1, -0.2]) == signed_rank_p([0.3, 0.1, -0.2])
    assert signed_rank_p([0.0, 0.0]) == 1.0
    assert signed_rank_p([0.1 + 0.2 - 0.3, 0.5]) == signed_rank_p([0.5])
    with pytest.raises(ValueError, match="finite"):
        signed_rank_p([NAN])


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.02, 0.02, 0.02]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_ranks_by_hand():
    values = np.array([[0.9, 0.7, 0.8], [0.5, 0.5, 0.6], [0.1 + 0.2, 0.3, 0.3]])
    assert ranks(values).tolist() == [[1, 3, 2], [2.5, 2.5, 1], [2, 2, 2]]


@pytest.mark.parametrize("ties", [False, True])
def test_friedman_agrees_with_scipy(ties: bool):
    values = np.random.default_rng(3).normal([0.0, 0.1, 0.5, 0.9], size=(9, 4))
    values = values.round(0) if ties else values
    found = friedman(ranks(values))
    expected = stats.friedmanchisquare(*values.T)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_iman_and_davenports_f_follows_from_chi_square():
    found = friedman(ranks(np.random.default_rng(0).normal(size=(14, 4))))
    expected = 13 * found.statistic / (14 * 3 - found.statistic)
    assert found.f_statistic == pytest.approx(expected)
    assert found.f_p == pytest.approx(stats.f.sf(expected, 3, 39))


def test_friedman_of_equal_and_of_unanimous_ranks():
    alike = friedman(np.full((5, 3), 2.0))
    assert (alike.statistic, alike.p) == (0.0, 1.0)
    unanimous = friedman(np.tile([1.0, 2.0, 3.0], (5, 1)))
    assert unanimous.statistic == pytest.approx(10.0)
    assert (unanimous.f_statistic, unanimous.f_p) == (math.inf, 0.0)
    with pytest.raises(ValueError, match="two blocks"):
        friedman(np.ones((1, 3)))


@pytest.mark.parametrize(
    ("count", "q"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (10, 3.164)],
)
def test_critical_difference_has_the_quantiles_of_demsars_table(count: int, q: float):
    blocks = 14
    expected = q * math.sqrt(count * (count + 1) / (6 * blocks))
    assert critical_difference(count, blocks) == pytest.approx(expected, abs=0.001)


def test_cliques_are_the_largest_groups_that_do_not_differ():
    assert cliques([1.0, 1.5, 2.2, 4.0, 4.5], 1.0) == [(0, 1), (1, 2), (3, 4)]
    assert cliques([1.0, 1.2, 1.4], 1.0) == [(0, 2)]
    assert cliques([1.0, 2.0], 1.0) == []


def test_the_bootstrap_of_one_seed_is_that_of_the_data_sets_means():
    values = np.random.default_rng(1).normal(size=(2, 6, 1, 1))
    drawn = bootstrap(values, resamples=20_000)
    assert drawn.levels == "data sets"
    for method in range(2):
        sample = values[method, :, 0, 0]
        assert drawn.draws[method].mean() == pytest.approx(sample.mean(), abs=0.02)
        # The variance of a resampled mean is that of the sample, n in its denominator, over n.
        assert drawn.draws[method].var() == pytest.approx(sample.var() / 6, rel=0.05)


def test_two_levels_add_the_variance_of_the_seeds():
    values = np.random.default_rng(2).normal(size=(1, 5, 1, 4))
    drawn = bootstrap(values, resamples=40_000)
    assert drawn.levels == "data sets and seeds"
    table = values[0, :, 0]
    expected = table.mean(axis=1).var() / 5 + (table.var(axis=1) / 4).mean() / 5
    assert drawn.draws[0].var() == pytest.approx(expected, rel=0.05)


def test_few_data_sets_are_held_and_seeds_drawn():
    values = np.random.default_rng(4).normal(size=(1, 2, 1, 3))
    drawn = bootstrap(values, resamples=40_000)
    assert drawn.levels == "seeds"
    expected = (values[0, :, 0].var(axis=1) / 3).sum() / 4
    assert drawn.draws[0].var() == pytest.approx(expected, rel=0.05)
    assert bootstrap(values[..., :2]).interval(0) is None
    assert bootstrap(values[..., :2]).levels == ""


def test_an_interval_is_of_the_percentiles_and_the_same_every_time():
    values = np.random.default_rng(5).normal(size=(3, 4, 2, 3))
    first, second = bootstrap(values), bootstrap(values)
    assert first.interval(1) == second.interval(1)
    assert first.interval(1) == pytest.approx(np.percentile(first.draws[1], [2.5, 97.5]))


def test_seeds_that_are_not_there_are_not_drawn():
    values = np.full((1, 3, 2, 3), 0.25)
    values[0, 1, :, 2] = NAN
    values[0, 2, 1, :] = NAN
    assert np.allclose(bootstrap(values, resamples=500).draws, 0.25)


def test_equal_differences_have_an_interval_of_no_width():
    low, high = bootstrap(np.full((1, 4, 1, 3), 0.1)).interval(0)
    assert (low, high) == pytest.approx((0.1, 0.1))
