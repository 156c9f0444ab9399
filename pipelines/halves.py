"""Comparisons whose winner is named by one half of the data sets and judged by the other.

The halves are fixed beforehand: data sets in alphabetical order, in turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Cell = tuple[str, int, int]
"""A task: data set, shots, seed."""

Accuracies = Mapping[Cell, float]
"""Test accuracies, 0 to 1."""

FIRST, SECOND, ALL = "first half", "second half", "all"


def halves(datasets: Iterable[str]) -> dict[str, list[str]]:
    """Return the first half of the data sets, the second, and all of them, by name."""
    names = sorted(set(datasets))
    return {FIRST: names[::2], SECOND: names[1::2], ALL: names}


def members(datasets: Iterable[str]) -> list[str]:
    """Return two lines that say which data sets a half has."""
    found = halves(datasets)
    return [f"{half}: {', '.join(found[half])}" for half in (FIRST, SECOND)]


def difference(
    one: Accuracies, base: Accuracies, datasets: Sequence[str], shots: Sequence[int]
) -> str:
    """Return by how many points one thing is above another on the tasks that both have.

    The differences are paired by task, averaged over seeds and shots and then over data sets; the
    95% interval is of a bootstrap over data sets and seeds, and is left out where there is too
    little for one.
    """
    import numpy as np

    from safe_ray.comparison.statistics import bootstrap, dataset_means

    common = one.keys() & base.keys()
    seeds = sorted({seed for _, _, seed in common})
    values = np.full((1, len(datasets), len(shots), len(seeds)), np.nan)
    for dataset, count, seed in common:
        if dataset in datasets and count in shots:
            place = datasets.index(dataset), shots.index(count), seeds.index(seed)
            cell = dataset, count, seed
            values[(0, *place)] = one[cell] - base[cell]
    values = values[:, ~np.isnan(values[0]).all(axis=(1, 2))]
    if not values.size:
        return "-"
    mean = 100 * float(dataset_means(values)[0].mean())
    interval = bootstrap(values).interval(0)
    if interval is None:
        return f"{mean:+.1f}"
    return f"{mean:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def table(results: Mapping[str, Accuracies], what: str) -> list[str]:
    """Return a Markdown table of the differences to the first of the results.

    Args:
        results: test accuracies of several things, by name, on the same tasks.
        what: the things are.
    """
    names = list(results)
    base = results[names[0]]
    shots = sorted({count for _, count, _ in base})
    lines = [
        f"| {what}, points over `{names[0]}` | half | all shots | {_joined(shots)} |",
        "|:--|:--" + "|--:" * (1 + len(shots)) + "|",
    ]
    for name in names[1:]:
        for half, datasets in halves(dataset for dataset, _, _ in base).items():
            cells = [
                difference(results[name], base, datasets, counts)
                for counts in [shots, *([one] for one in shots)]
            ]
            lines.append(f"| `{name}` | {half} | {' | '.join(cells)} |")
    return lines


def _joined(values: Sequence[int]) -> str:
    return " | ".join(map(str, values))
