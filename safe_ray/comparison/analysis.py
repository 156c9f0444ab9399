"""What a comparison says: means, differences to the baseline, and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from safe_ray.comparison.pairing import Contestant, Paired
from safe_ray.comparison.statistics import (
    Floats,
    Friedman,
    bootstrap,
    critical_difference,
    dataset_means,
    friedman,
    holm,
    mean_of_present,
    ranks,
    signed_rank_p,
)
from safe_ray.report.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Average:
    """A contestant's accuracies at one number of shots, in [0, 1].

    Attributes:
        contestant: whose they are; None for the untouched model.
        shots: labelled training images a class.
        cells: one a data set, over its seeds; None where there is none.
        average: over the data sets, seed by seed over the seeds that all of them have; without
            such a seed the mean of the cells, and no interval.
        datasets: how many are averaged.
    """

    contestant: Contestant | None
    shots: int
    cells: tuple[Interval | None, ...]
    average: Interval
    datasets: int


def averages(paired: Paired, macro: bool = False) -> list[Average]:
    """Return the averages of all contestants at all shots, then those of the untouched model.

    Args:
        paired: what is compared.
        macro: of the mean per class accuracy, where the untouched model has none.
    """
    values = paired.macro_accuracy if macro else paired.accuracy
    tables: list[tuple[Contestant | None, Floats]] = [*zip(paired.contestants, values, strict=True)]
    if paired.zero_shot is not None and not macro:
        tables.append((None, paired.zero_shot))
    return [
        _average(contestant, shots, table[:, at])
        for contestant, table in tables
        for at, shots in enumerate(paired.shots)
    ]


def _average(contestant: Contestant | None, shots: int, values: Floats) -> Average:
    """Average values [datasets, seeds]."""
    there = ~np.isnan(values)
    cells = tuple(
        mean_interval(row[has].tolist()) if has.any() else None
        for row, has in zip(values, there, strict=True)
    )
    run = there.any(axis=1)
    common = there[run].all(axis=0)
    if common.any():
        average = mean_interval(values[run][:, common].mean(axis=0).tolist())
    else:
        average = Interval(float(mean_of_present(values[run], -1).mean()), None, 0)
    return Average(contestant, shots, cells, average, int(run.sum()))


@dataclass(frozen=True)
class Difference:
    """A contestant minus the baseline, in [-1, 1].

    Attributes:
        contestant: what is compared to the baseline.
        shots: labelled training images a class; None for all shots together.
        mean: over data sets of the mean over shots of the mean over seeds.
        interval: of 95%, by `bootstrap`; None if there is too little to draw from.
        levels: what the bootstrap draws from.
        p: of the signed-rank test over data sets.
        p_holm: the same, corrected for the number of contestants.
        datasets: how many.
        pairs: how many tasks.
    """

    contestant: Contestant
    shots: int | None
    mean: float
    interval: tuple[float, float] | None
    levels: str
    p: float
    p_holm: float
    datasets: int
    pairs: int


def differences(paired: Paired, macro: bool = False) -> list[Difference]:
    """Return every contestant's differences to the baseline: over all shots, then at each.

    Args:
        paired: what is compared.
        macro: of the mean per class accuracy.
    """
    values = paired.macro_accuracy if macro else paired.accuracy
    if len(values) < 2:
        return []
    found: list[Difference] = []
    places: list[tuple[int | None, slice]] = [
        (shots, slice(at, at + 1)) for at, shots in enumerate(paired.shots)
    ]
    if len(places) > 1:
        places.insert(0, (None, slice(None)))
    for shots, place in places:
        part = values[1:, :, place] - values[:1, :, place]
        part = part[:, ~np.isnan(part[0]).all(axis=(1, 2))]
        found += _differences(paired.contestants[1:], shots, part)
    return found


def _differences(
    contestants: Sequence[Contestant], shots: int | None, values: Floats
) -> list[Difference]:
    drawn = bootstrap(values)
    over_seeds = dataset_means(values)
    p_values = [signed_rank_p(row.tolist()) for row in over_seeds]
    return [
        Difference(
            contestant=contestant,
            shots=shots,
            mean=float(over_seeds[at].mean()),
            interval=drawn.interval(at),
            levels=drawn.levels,
            p=p_values[at],
            p_holm=corrected,
            datasets=over_seeds.shape[1],
            pairs=int((~np.isnan(values[at])).sum()),
        )
        for at, (contestant, corrected) in enumerate(zip(contestants, holm(p_values), strict=True))
    ]


@dataclass(frozen=True)
class Ranking:
    """Mean ranks over blocks, a block being a data set at one number of shots.

    Attributes:
        contestants: the best first.
        mean_ranks: of these, 1 being the best possible.
        blocks: how many.
        test: whether any differ.
        critical_difference: by how much two must differ, at 5%.
    """

    contestants: tuple[Contestant, ...]
    mean_ranks: tuple[float, ...]
    blocks: int
    test: Friedman
    critical_difference: float


def ranking(paired: Paired) -> Ranking | None:
    """Return the ranks by accuracy, averaged over seeds; None below two contestants or blocks."""
    means = mean_of_present(paired.accuracy, -1)
    blocks = means.reshape(len(means), -1).T
    blocks = blocks[~np.isnan(blocks[:, 0])]
    if min(blocks.shape) < 2:
        return None
    ranked = ranks(blocks)
    mean = ranked.mean(axis=0)
    order = sorted(range(len(mean)), key=lambda at: (mean[at], at))
    return Ranking(
        contestants=tuple(paired.contestants[at] for at in order),
        mean_ranks=tuple(float(mean[at]) for at in order),
        blocks=len(blocks),
        test=friedman(ranked),
        critical_difference=critical_difference(len(mean), len(blocks)),
    )
