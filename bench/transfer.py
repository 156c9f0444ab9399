"""With search.transfer a task needs fewer candidates to come near its best validation accuracy.

Two sweeps over the same tasks of embedded data sets, with the same seeds, differ in search.transfer
alone. Near is half a point below the best accuracy that either sweep reaches on the task; a side
that never comes near counts as one candidate more than there are. A task's ratio is that
of the candidates needed without to those needed with. What the last line calls the ratio is the
lower end of a one-sided 95% interval of the median of these (an order statistic), since a median
over so few and so noisy tasks could be above 1 by chance. All validation images are used, and still
half a point is less than one image of each data set. Tasks with nobody to borrow from are alike on
both sides and left out.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.harness import CORES, arguments, finish
from safe_ray.compose import load_config
from safe_ray.search.begin import run_sweep
from safe_ray.search.searcher import LOANS
from safe_ray.training.job import BankJob, BankOutcome

_NEAR = 0.005
_TARGET = 1.05
_CHANCE = 0.05
_CANDIDATES, _BANK = 16, 4
# Those with the most validation images, and several a class to draw support sets from.
_DATASETS = ("emoji_kinds", "icon_kinds", "icon_themes", "pictogram_objects")

Accuracies = Mapping[str, Sequence[float]]


def sweep(storage: Path, transfer: bool, quick: bool) -> tuple[Accuracies, set[str]]:
    """Run one side.

    Returns:
        The validation accuracy of each task's candidates, at the best alpha of each, in the order
        in which they were suggested; and the ids of the tasks that borrowed.
    """
    datasets = "game_icons,icon_kinds" if quick else ",".join(_DATASETS)
    config = load_config(
        [
            f"sweep=transfer-{'on' if transfer else 'off'}",
            f"storage={storage}",
            f"cluster.num_cpus={CORES}",
            f"tasks.datasets=[{datasets}]",
            f"tasks.shots={'[1]' if quick else '[1,2]'}",
            f"tasks.seeds={'[1]' if quick else '[1,2]'}",
            "features.views=2",
            "tracking.heads=none",
            "tracking.register=false",
            f"search.candidates={_BANK if quick else _CANDIDATES}",
            f"search.bank={2 if quick else _BANK}",
            f"search.epochs={'{low: 1, high: 2}' if quick else '{low: 5, high: 30, log: true}'}",
            "search.validation=full",
            f"search.transfer={str(transfer).lower()}",
            # With as many trials as cores, nobody would have ended before the second task of two.
            f"search.concurrent_trials={1 if quick else CORES}",
        ]
    )
    with _silence():
        run_sweep(config)
    accuracies, borrowed = {}, set()
    for task in config.tasks.tasks():
        folders = [
            BankJob(str(config.outputs), task.id, bank, ()).folder
            for bank in range(config.search.candidates)
        ]
        outcomes = [o for o in map(BankOutcome.load, folders) if o is not None]
        accuracies[task.id] = [
            0.0 if c.row is None or c.best is None else c.row.accuracy[c.best]
            for outcome in outcomes
            for c in outcome.candidates
        ]
        if (folders[0] / LOANS).exists():
            borrowed.add(task.id)
    return accuracies, borrowed


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def needed(accuracies: Sequence[float], goal: float) -> int:
    """Return how many candidates it takes to reach an accuracy; one more than all if none does."""
    reached = (place for place, accuracy in enumerate(accuracies, 1) if accuracy >= goal)
    return next(reached, len(accuracies) + 1)


def least_median(values: Sequence[float]) -> float:
    """Return what the median is above with 95% confidence, whatever the distribution; 0 if none."""
    below = 0
    while sum(math.comb(len(values), k) for k in range(below + 1)) / 2 ** len(values) <= _CHANCE:
        below += 1
    return sorted(values)[below - 1] if below else 0.0


def main() -> None:
    """Run both sides and print what each task needed."""
    quick = arguments(str(__doc__)).quick
    with tempfile.TemporaryDirectory() as folder:
        without, _ = sweep(Path(folder), False, quick)
        with_transfer, borrowed = sweep(Path(folder), True, quick)
    counts: dict[str, list[int]] = {"without": [], "with": []}
    gains: dict[str, list[float]] = {"first_bank": [], "all": []}
    first = 2 if quick else _BANK
    print(f"{'task':<28}{'best':>7}{'without':>9}{'with':>6}   {'first bank: without, with':>26}")
    for task in without:
        one, other = without[task], with_transfer[task]
        best = max(*one, *other)
        pair = [needed(side, best - _NEAR - 1e-9) for side in (one, other)]
        firsts = [max(side[:first]) for side in (one, other)]
        print(
            f"{task:<28}{100 * best:>7.1f}{pair[0]:>9}{pair[1]:>6}"
            f"   {100 * firsts[0]:>18.1f}, {100 * firsts[1]:.1f}"
            f"{'' if task in borrowed else '   (borrowed nothing)'}"
        )
        if task in borrowed:
            counts["without"].append(pair[0])
            counts["with"].append(pair[1])
            gains["first_bank"].append(firsts[1] - firsts[0])
            gains["all"].append(max(other) - max(one))
    medians = {side: statistics.median(values) for side, values in counts.items()}
    points = {name: round(100 * statistics.mean(values), 2) for name, values in gains.items()}
    print(
        f"{len(borrowed)} tasks that borrowed: median candidates without {medians['without']:g}, "
        f"with {medians['with']:g}; best accuracy with minus without, mean: after the first bank "
        f"{points['first_bank']:+.2f} points, after all {points['all']:+.2f}"
    )
    ratios = [one / other for one, other in zip(*counts.values(), strict=True)]
    finish(
        "transfer",
        least_median(ratios),
        _TARGET,
        median_ratio=round(statistics.median(ratios), 2),
        tasks_with_fewer=sum(ratio > 1 for ratio in ratios),
        tasks_with_more=sum(ratio < 1 for ratio in ratios),
        median_candidates=medians,
        mean_candidates={side: round(statistics.mean(v), 1) for side, v in counts.items()},
        points_gained=points,
        tasks=len(borrowed),
    )


if __name__ == "__main__":
    main()
