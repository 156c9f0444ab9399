"""Intervals over seeds and test images, from which images each method got right."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safe_ray.report.correct import Correct
from safe_ray.report.intervals import Interval, crossed_draws, percentile_interval
from safe_ray.report.summary import ZERO_SHOT, TaskResult

Draws = NDArray[np.float64]
_Key = tuple[str, int, tuple[int, ...], str, bool]

# Less than one image of 50,000.
_TOLERANCE = 1e-5


class Outcomes:
    """Which test images were right, by task and method; resampled means are computed once.

    Args:
        correct: a row a task and method, zero-shot among the methods.
    """

    def __init__(self, correct: Sequence[Correct] = ()) -> None:
        self._right = {(row.dataset, row.shots, row.seed, row.method): row.right for row in correct}
        self._draws: dict[_Key, Draws] = {}

    def interval(
        self, groups: Sequence[Sequence[TaskResult]], mean: float, method: str, minus: bool = False
    ) -> Interval | None:
        """Return the interval of a mean over data sets of means over seeds and images.

        Every data set is resampled on its own (see `crossed_draws`).

        Args:
            groups: results of one method and number of shots, those of a data set together.
            mean: what it is around, in [0, 1], or a difference.
            method: `zero_shot` for the untouched model's accuracy, or the method of the results.
            minus: whether it is of the difference to zero-shot.

        Returns:
            None if the images of a result are not known, or do not come to its accuracy.
        """
        results = [result for group in groups for result in group]
        if not all(self._known(result, name) for result in results for name in (method, ZERO_SHOT)):
            return None
        draws = [self._drawn(group, method, minus) for group in groups]
        return percentile_interval(mean, np.mean(draws, axis=0), min(map(len, groups)))

    def _known(self, result: TaskResult, method: str) -> bool:
        right = self._right.get((result.dataset, result.shots, result.seed, method))
        if right is None or right.size != result.test.samples:
            return False
        accuracy = result.test.accuracy[method]
        return math.isclose(float(right.mean()), accuracy, abs_tol=_TOLERANCE)

    def _drawn(self, group: Sequence[TaskResult], method: str, minus: bool) -> Draws:
        dataset, shots = group[0].dataset, group[0].shots
        seeds = tuple(result.seed for result in group)
        key = (dataset, shots, seeds, method, minus)
        if key not in self._draws:
            right = self._stacked(dataset, shots, seeds, method)
            if minus:
                right = right - self._stacked(dataset, shots, seeds, ZERO_SHOT)
            # Data sets are drawn independently of each other.
            self._draws[key] = crossed_draws(right, seed=(zlib.crc32(dataset.encode()), shots))
        return self._draws[key]

    def _stacked(
        self, dataset: str, shots: int, seeds: Sequence[int], method: str
    ) -> NDArray[np.int8]:
        rows = [self._right[dataset, shots, seed, method] for seed in seeds]
        return np.stack(rows).astype(np.int8)
