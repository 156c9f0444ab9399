"""Means over seeds with 95% intervals, by Student's t.

Fewer than three values have no interval. That of two would be their mean ± 12.7 standard errors,
from a spread that is a single difference: it says nothing that the two values do not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
FEWEST = 3
"""How many values have an interval."""

WHY_NO_INTERVAL = (
    "Below three seeds there is no interval: one has no spread, and that of two says next to "
    "nothing (their mean ± 12.7 standard errors)."
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
    """

    mean: float
    half_width: float | None
    count: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
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
