"""The tasks that all compared methods have, as arrays over methods, data sets, shots and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safe_ray.comparison.rows import Cell, ResultRow
from safe_ray.errors import InputError, nearest
from safe_ray.specs import shots_in_words

BASELINE = "safe"
ZERO_SHOT = "zero_shot"

_MOST_NAMED = 8


@dataclass(frozen=True)
class Contestant:
    """A method, or a method with one of several backbones.

    Attributes:
        name: `method`, or `method@backbone` where there are several backbones.
        method: its short name.
        backbone: its name.
        title: what tables call it.
    """

    name: str
    method: str
    backbone: str
    title: str


@dataclass(frozen=True)
class Paired:
    """Results on the tasks that all contestants have.

    Attributes:
        contestants: in the order of the sweeps, the baseline first.
        datasets: in alphabetical order.
        shots: ascending.
        seeds: ascending.
        accuracy: float64 [contestants, datasets, shots, seeds], 0 to 1, NaN where there is no such
            task; the same tasks are there for every contestant.
        macro_accuracy: the same of the mean per class accuracy.
        zero_shot: float64 [datasets, shots, seeds], the untouched model's accuracy; None where
            the contestants have several backbones.
        notes: sentences on what is left out and on what does not match.
    """

    contestants: tuple[Contestant, ...]
    datasets: tuple[str, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    accuracy: NDArray[np.float64]
    macro_accuracy: NDArray[np.float64]
    zero_shot: NDArray[np.float64] | None
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Contestant:
        """What the others are compared to."""
        return self.contestants[0]

    @property
    def backbones(self) -> tuple[str, ...]:
        """All backbones, each once."""
        return tuple(dict.fromkeys(contestant.backbone for contestant in self.contestants))


def pair(rows: Sequence[ResultRow], baseline: str | None = None) -> Paired:
    """Return the results on the tasks that all contestants have.

    Args:
        rows: of one or several sweeps, no two of the same backbone, task and method.
        baseline: the name or the method of a contestant; None for `safe`, or for the first where
            there is no `safe`.

    Raises:
        InputError: no task is everybody's, there is no such baseline, or a task was tested on
            different numbers of images.
    """
    contestants = _baseline_first(_contestants(rows), baseline)
    results = {contestant.name: _of(contestant, rows) for contestant in contestants}
    every = {cell for cells in results.values() for cell in cells}
    common = sorted(set.intersection(*(set(cells) for cells in results.values())))
    if not common:
        raise InputError(
            "No task (data set, shots, seed) has a result of every one of "
            f"{', '.join(results)}: name sweeps of the same tasks."
        )
    _check_sizes(common, results)
    datasets = tuple(sorted({dataset for dataset, _, _ in common}))
    shots = tuple(sorted({count for _, count, _ in common}))
    seeds = tuple(sorted({seed for _, _, seed in common}))
    shape = (len(contestants), len(datasets), len(shots), len(seeds))
    accuracy, macro, zero_shot = (np.full(shape, np.nan) for _ in range(3))
    for at, contestant in enumerate(contestants):
        for dataset, count, seed in common:
            row = results[contestant.name][dataset, count, seed]
            place = at, datasets.index(dataset), shots.index(count), seeds.index(seed)
            accuracy[place] = row.accuracy
            macro[place] = row.macro_accuracy
            zero_shot[place] = row.zero_shot
    several = len({contestant.backbone for contestant in contestants}) > 1
    notes = [
        *_left_out(sorted(every - set(common)), len(every), contestants, results),
        *_episodes(common, results),
        *_untouched(common, results),
    ]
    return Paired(
        contestants=contestants,
        datasets=datasets,
        shots=shots,
        seeds=seeds,
        accuracy=accuracy,
        macro_accuracy=macro,
        zero_shot=None if several else zero_shot[0],
        notes=tuple(notes),
    )


def _contestants(rows: Iterable[ResultRow]) -> tuple[Contestant, ...]:
    found = dict.fromkeys((row.method, row.backbone, row.title) for row in rows)
    several = len({backbone for _, backbone, _ in found}) > 1
    titles = Counter(title for title, _ in {(title, method) for method, _, title in found})
    contestants = []
    for method, backbone, title in found:
        named = f"{title} ({method})" if titles[title] > 1 else title
        contestants.append(
            Contestant(
                name=f"{method}@{backbone}" if several else method,
                method=method,
                backbone=backbone,
                title=f"{named}, {backbone}" if several else named,
            )
        )
    return tuple(contestants)


def _baseline_first(
    contestants: tuple[Contestant, ...], baseline: str | None
) -> tuple[Contestant, ...]:
    asked = BASELINE if baseline is None else baseline
    chosen = next((c for c in contestants if asked in (c.name, c.method)), None)
    if chosen is None and baseline is not None:
        names = [contestant.name for contestant in contestants]
        raise InputError(
            f"The sweeps have no method {baseline!r} to take as --baseline."
            + (nearest(baseline, names) or f" They have: {', '.join(names)}.")
        )
    first = contestants[0] if chosen is None else chosen
    return (first, *(contestant for contestant in contestants if contestant != first))


def _of(contestant: Contestant, rows: Iterable[ResultRow]) -> dict[Cell, ResultRow]:
    wanted = contestant.method, contestant.backbone
    return {row.cell: row for row in rows if (row.method, row.backbone) == wanted}


Results = dict[str, dict[Cell, ResultRow]]


def _check_sizes(common: Iterable[Cell], results: Results) -> None:
    for cell in common:
        sizes = {name: cells[cell].test_samples for name, cells in results.items()}
        (first, many), *others = sizes.items()
        for name, count in others:
            if count != many:
                dataset, shots, seed = cell
                raise InputError(
                    f"{dataset} at {shots_in_words(shots)}, seed {seed} was tested on {many} "
                    f"images for {first} and on {count} for {name}: name sweeps with the same "
                    "test split."
                )


def _left_out(
    cells: Sequence[Cell], total: int, contestants: Iterable[Contestant], results: Results
) -> list[str]:
    if not cells:
        return []
    groups: dict[tuple[str, int, str], list[int]] = {}
    for dataset, shots, seed in cells:
        without = [c.title for c in contestants if (dataset, shots, seed) not in results[c.name]]
        groups.setdefault((dataset, shots, ", ".join(without)), []).append(seed)
    named = [
        f"{dataset} at {shots_in_words(shots)}, seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))} (not with {without})"
        for (dataset, shots, without), seeds in groups.items()
    ]
    more = len(named) - _MOST_NAMED
    listed = "; ".join(named[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return [f"Left out are {len(cells)} of {total} tasks, which not every method has: {listed}."]


def _episodes(common: Iterable[Cell], results: Results) -> list[str]:
    cells = list(common)
    differ = sum(
        len({rows[cell].episode_digest for rows in results.values()}) > 1 for cell in cells
    )
    if not differ:
        return []
    return [
        f"In {differ} of {len(cells)} tasks the methods saw different support or validation "
        "samples: these pairs share the data set, the shots and the seed's number alone."
    ]


def _untouched(common: Iterable[Cell], results: Results) -> list[str]:
    seen: dict[tuple[str, Cell], set[float]] = {}
    for rows in results.values():
        for cell in common:
            seen.setdefault((rows[cell].backbone, cell), set()).add(round(rows[cell].zero_shot, 6))
    differ = sum(len(values) > 1 for values in seen.values())
    if not differ:
        return []
    return [
        f"In {differ} of {len(seen)} tasks the untouched model's accuracy is not the same for all "
        "methods: their prompts, weights or images differ."
    ]
