"""Pure functions: bootstrap over two levels, signed ranks, Holm, Friedman and Nemenyi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
FEWEST_DATASETS = 3
"""How many data sets are drawn from; fewer are held as they are."""
FEWEST_SEEDS = 3
"""How many seeds give an interval where the data sets are held as they are."""

# Accuracies that are equal but for rounding in their means are ties.
_DIGITS = 12

Floats = NDArray[np.float64]


def mean_of_present(values: Floats, axis: int) -> Floats:
    """Return the mean along an axis of what is not NaN, and NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def dataset_means(values: Floats) -> Floats:
    """Return the mean over seeds, then over shots.

    Args:
        values: float64 [..., shots, seeds], NaN where there is none.

    Returns:
        float64 [...].
    """
    return mean_of_present(mean_of_present(values, -1), -1)


@dataclass(frozen=True)
class Bootstrap:
    """Means of resampled differences.

    Attributes:
        draws: float64 [contestants, resamples], in the differences' unit.
        levels: what was drawn from: "data sets and seeds", "data sets" or "seeds"; "" if there was
            too little of both, and the draws are empty.
    """

    draws: Floats
    levels: str

    def interval(
        self, contestant: int, confidence: float = CONFIDENCE
    ) -> tuple[float, float] | None:
        """Return the percentiles around a contestant's mean, or None without draws."""
        if not self.levels:
            return None
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(self.draws[contestant], [tail, 1.0 - tail])
        return float(low), float(high)


def bootstrap(differences: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Bootstrap:
    """Return means of differences over data sets that are drawn, and over seeds drawn in each.

    A resample draws as many data sets as there are, with replacement; for each of those it draws as
    many seeds as that data set has, with replacement, for all shots alike. Its value is the mean
    over the drawn data sets of the mean over shots of the mean over the drawn seeds. Below
    `FEWEST_DATASETS` data sets these are held, and only seeds are drawn. All contestants share the
    draws. Data sets vary for their seeds, too, so that two levels err on the wide side.

    Args:
        differences: float64 [contestants, data sets, shots, seeds], NaN where there is no such
            task, for every contestant alike; every data set has a task.
        resamples: how many.
        seed: of the random generator.
    """
    contestants, datasets, _, _ = differences.shape
    present = [np.flatnonzero(~np.isnan(differences[0, at]).all(axis=0)) for at in range(datasets)]
    several = datasets >= FEWEST_DATASETS
    if not several and min(map(len, present)) < FEWEST_SEEDS:
        return Bootstrap(np.empty((contestants, 0)), "")
    with_seeds = any(len(seeds) > 1 for seeds in present)
    random = np.random.default_rng(seed)
    if several:
        chosen = random.integers(datasets, size=(resamples, datasets))
    else:
        chosen = np.broadcast_to(np.arange(datasets), (resamples, datasets))
    values = np.empty((contestants, resamples, datasets))
    for dataset, seeds in enumerate(present):
        drawn = chosen == dataset
        picked = seeds[random.integers(len(seeds), size=(int(drawn.sum()), len(seeds)))]
        # [contestants, shots, draws, seeds] -> mean over the seeds, then over the shots.
        over_seeds = mean_of_present(differences[:, dataset][:, :, picked], -1)
        values[:, drawn] = mean_of_present(over_seeds, 1)
    levels = " and ".join(["data sets"] * several + ["seeds"] * with_seeds)
    return Bootstrap(values.mean(axis=-1), levels)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of Wilcoxon's signed-rank test.

    Zeros are left out, as Wilcoxon does; ties have the mean of their ranks, and the distribution is
    that of these ranks with every sign equally likely. Nothing but zeros has a p-value of 1.

    Raises:
        ValueError: a difference is not finite.
    """
    values = np.round(np.asarray(differences, dtype=np.float64), _DIGITS)
    if not np.isfinite(values).all():
        raise ValueError(f"signed ranks need finite differences, not {list(differences)}")
    values = values[values != 0]
    if not len(values):
        return 1.0
    from scipy.stats import rankdata

    # Twice the ranks are whole numbers, ties or not.
    doubled = np.rint(2 * rankdata(np.abs(values))).astype(int)
    total = int(doubled.sum())
    ways = np.zeros(total + 1)
    ways[0] = 1.0
    for rank in doubled:
        ways[rank:] = ways[rank:] + ways[:-rank]
    positive = int(doubled[values > 0].sum())
    smaller = min(positive, total - positive)
    return float(min(1.0, 2.0 * ways[: smaller + 1].sum() / ways.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values that are corrected for their number by Holm's step-down procedure.

    The i-th smallest of n (i from 0) is multiplied by n - i; none is below that of a smaller one,
    nor above 1. Source: Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for step, at in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - step) * p_values[at]))
        corrected[at] = highest
    return corrected


def ranks(values: Floats) -> Floats:
    """Return ranks along the last axis: 1 for the highest, the mean rank for ties.

    Args:
        values: float64 [blocks, contestants].
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(-np.round(values, _DIGITS), axis=-1), dtype=np.float64)


@dataclass(frozen=True)
class Friedman:
    """Whether any contestants differ in their ranks.

    Attributes:
        statistic: Friedman's chi-square, corrected for ties, with contestants - 1 degrees of
            freedom.
        p: its p-value.
        f_statistic: Iman and Davenport's, infinite where all blocks rank alike.
        f_p: its p-value.
    """

    statistic: float
    p: float
    f_statistic: float
    f_p: float


def friedman(ranked: Floats) -> Friedman:
    """Return Friedman's test of ranks and its correction by Iman and Davenport.

    Source: Demsar, Journal of Machine Learning Research 7, 2006, section 3.2.2.

    Args:
        ranked: float64 [blocks, contestants], as `ranks` gives them.

    Raises:
        ValueError: fewer than two contestants or blocks.
    """
    from scipy.stats import chi2, f

    blocks, count = ranked.shape
    if blocks < 2 or count < 2:
        raise ValueError(f"Friedman's test needs two blocks and contestants, not {ranked.shape}")
    between = ((ranked.sum(axis=0) - blocks * (count + 1) / 2) ** 2).sum() / blocks
    # Without ties the mean square of a block's ranks is count * (count + 1) / 12.
    within = ((ranked - (count + 1) / 2) ** 2).sum() / (blocks * (count - 1))
    if math.isclose(within, 0.0, abs_tol=1e-12):
        return Friedman(0.0, 1.0, 0.0, 1.0)
    statistic = float(between / within)
    left = blocks * (count - 1) - statistic
    f_statistic = math.inf if left <= 1e-9 else (blocks - 1) * statistic / left
    degrees = count - 1, (count - 1) * (blocks - 1)
    return Friedman(
        statistic=statistic,
        p=float(chi2.sf(statistic, degrees[0])),
        f_statistic=f_statistic,
        f_p=float(f.sf(f_statistic, *degrees)),
    )


def critical_difference(contestants: int, blocks: int, confidence: float = CONFIDENCE) -> float:
    """Return by how much mean ranks must differ by Nemenyi's test.

    It is q sqrt(k (k + 1) / (6 N)) for k contestants in N blocks, q being the quantile of the
    studentised range of k for infinitely many degrees of freedom, over sqrt(2). Source: Demsar,
    Journal of Machine Learning Research 7, 2006, section 3.2.2.
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(confidence, contestants, np.inf)) / math.sqrt(2.0)
    return q * math.sqrt(contestants * (contestants + 1) / (6.0 * blocks))


def cliques(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return the largest groups of neighbours in rank that do not differ.

    Args:
        mean_ranks: ascending.
        difference: from which on two differ.

    Returns:
        First and last place of each group of at least two, none within another.
    """
    found: list[tuple[int, int]] = []
    for first in range(len(mean_ranks)):
        last = max(
            at
            for at in range(first, len(mean_ranks))
            if mean_ranks[at] - mean_ranks[first] < difference
        )
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
