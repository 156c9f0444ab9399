"""Means over seeds with 95% intervals, by Student's t or by a bootstrap.

By Student's t, fewer than three values have no interval. That of two would be their mean ± 12.7
standard errors, from a spread that is a single difference: it says nothing that the two values do
not.

The bootstrap is for outcomes a seed and test image, and draws both together. It needs no third
seed, since images vary under a single one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
FEWEST = 3
"""How many values have an interval."""
DRAWS = 2000

# Counts of a block of draws, 8 bytes each and twice: 64 MB.
_MOST_COUNTS = 4_000_000

WHY_NO_INTERVAL = (
    "Below three seeds there is no interval: one has no spread, and that of two says next to "
    "nothing (their mean ± 12.7 standard errors)."
)

STUDENT = (
    "Test accuracy in per cent, mean over seeds ± half of the 95% interval (Student's t); the "
    f"difference is paired by seed. {WHY_NO_INTERVAL}"
)
CROSSED = (
    "Test accuracy in per cent, mean over seeds ± half of the 95% interval. That is a bootstrap "
    "which draws seeds and test images together, in every data set on its own, and pairs the "
    "difference by both; a few seeds show it only a part of what seeds vary by."
)
PARTLY_CROSSED = (
    f"{CROSSED} Mean per class accuracies, and accuracies for which the single images are not "
    f"known, have Student's t over seeds instead. {WHY_NO_INTERVAL}"
)

_IN_WORDS = {1: "one seed", 2: "two seeds"}


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its confidence interval.

    Attributes:
        mean: of the values, in their unit.
        half_width: the interval is mean - half_width to mean + half_width; None for fewer than
            `FEWEST` values, whose spread says next to nothing.
        count: how many values.
        bounds: the two ends, where they need not be as far from the mean; `half_width` is then half
            of what lies between them.
    """

    mean: float
    half_width: float | None
    count: int
    bounds: tuple[float, float] | None = None

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        if self.bounds is not None:
            return self.bounds[0]
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        if self.bounds is not None:
            return self.bounds[1]
        return None if self.half_width is None else self.mean + self.half_width


def seeds_in_words(count: int) -> str:
    """Return a number of seeds for a table: in words where there is no interval."""
    return _IN_WORDS.get(count, str(count))


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of independent values with its two-sided Student-t interval.

    The half-width is t(n - 1, (1 + confidence) / 2) * s / sqrt(n), with the sample standard
    deviation s (n - 1 in its denominator).

    Raises:
        ValueError: no values, a value that is not finite, or a confidence outside (0, 1).
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a mean needs finite values, not {list(values)}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"a confidence lies between 0 and 1, not at {confidence}")
    count = len(values)
    mean = math.fsum(values) / count
    if count < FEWEST:
        return Interval(mean, None, count)
    from scipy.stats import t

    deviation = statistics.stdev(values)
    quantile = float(t.ppf((1.0 + confidence) / 2.0, count - 1))
    return Interval(mean, quantile * deviation / math.sqrt(count), count)


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """Return the mean of `first[i] - second[i]` with its interval.

    The two are measured on the same episodes, so the differences vary less than either does.

    Raises:
        ValueError: the lengths differ, or see `mean_interval`.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean_interval(differences, confidence)


def interval_note(intervals: Iterable[Interval | None]) -> str:
    """Return what the intervals of a report are, in sentences."""
    kinds = {interval.bounds is not None for interval in intervals if interval is not None}
    if True not in kinds:
        return STUDENT
    return PARTLY_CROSSED if False in kinds else CROSSED


def percentile_interval(
    mean: float, values: NDArray[np.float64], count: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the percentiles of resampled means as an interval around the mean itself.

    Args:
        mean: of what was resampled.
        values: float64 [draws], in the unit of the mean.
        count: of the seeds.
        confidence: how many of the draws lie between the ends.
    """
    tail = (1.0 - confidence) / 2.0
    low, high = (float(end) for end in np.quantile(values, [tail, 1.0 - tail]))
    return Interval(mean, (high - low) / 2.0, count, (low, high))


def crossed_draws(
    right: NDArray[np.generic], draws: int = DRAWS, seed: int | Sequence[int] = 0
) -> NDArray[np.float64]:
    """Return means of resampled seeds and test images.

    A draw takes as many seeds as there are and as many images as there are, with replacement, the
    same images for all of its seeds: the bootstrap of two crossed factors (Owen, "The pigeonhole
    bootstrap", Annals of Applied Statistics 1(2), 2007). What varies by seed and image at once
    counts up to three times there, so that the interval errs on the wide side. Of S seeds it shows
    (S - 1) / S of the variance between seeds, so that it is too narrow where seeds are few and
    differ by more than images make them differ.

    Images on which all seeds have the same outcomes are drawn as one, by their number. A block of
    draws takes less than 100 MB.

    Args:
        right: [seeds, images] bool or numbers.
        draws: how many resamples.
        seed: of the resampling.

    Returns:
        float64 [draws].

    Raises:
        ValueError: not two axes, nothing along one of them, or a number that is not finite.
    """
    if right.ndim != 2 or not right.size or not np.isfinite(right).all():
        raise ValueError(f"outcomes are finite and [seeds, images], not of shape {right.shape}")
    generator = np.random.default_rng(seed)
    seeds, images = right.shape
    patterns, sizes = np.unique(right, axis=1, return_counts=True)
    columns = patterns.T.astype(np.float64)
    means = np.empty(draws)
    block = max(_MOST_COUNTS // len(columns), 1)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        of_images = generator.multinomial(images, sizes / images, size=size)
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), size=size)
        by_seed = of_images.astype(np.float64) @ columns
        means[start : start + size] = (by_seed * of_seeds).sum(axis=1) / (seeds * images)
    return means
