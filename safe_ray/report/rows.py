"""What a table is made of: for every data set, number of shots and method a mean over seeds.

An average over data sets is of the data sets and the seeds that all methods have at its number of
shots, so that the averages of two methods compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from safe_ray.report.intervals import Interval, mean_interval, paired_difference
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.summary import ZERO_SHOT, Protocol, TaskResult, TestResult, in_order
from safe_ray.specs import Metric

AVERAGE = "average"


@dataclass(frozen=True)
class Row:
    """One method on a data set, or on average over data sets, at one number of shots.

    Attributes:
        dataset: its name; of an average what to call it.
        shots: labelled training images a class.
        method: the method's name.
        seeds: how many.
        selection: how the winners were chosen.
        zero_shot: of the untouched model, in [0, 1], over seeds, or over seeds and images.
        accuracy: of the method, likewise.
        gain: their difference, in [-1, 1], paired; None where the method is zero-shot.
        not_shown: of how many of its tasks the validation samples do not show a gain beyond chance;
            an average and a target have none.
        averaged: the data sets that an average is over; none in any other row.
    """

    dataset: str
    shots: int
    method: str
    seeds: int
    selection: str
    zero_shot: Interval
    accuracy: Interval
    gain: Interval | None
    not_shown: int = 0
    averaged: tuple[str, ...] = ()

    @property
    def is_average(self) -> bool:
        """Whether it is over data sets."""
        return bool(self.averaged)


@dataclass(frozen=True)
class _Pair:
    """What is compared: accuracies of the untouched model and of the method, 0 to 1."""

    zero_shot: float
    accuracy: float


_Group = Mapping[str, Sequence[TaskResult]]
"""The results of one data set and number of shots, by method."""


def titles_of(results: Iterable[TaskResult]) -> dict[str, str]:
    """Return every method's title by its name, in the order in which tables have the methods.

    This is the order in the task that has the most methods; those it lacks follow. Methods of the
    same title are told apart by their names.
    """
    tasks: dict[tuple[str, int, int], dict[str, str]] = {}
    for result in results:
        task = tasks.setdefault((result.dataset, result.shots, result.seed), {})
        task.setdefault(result.method, result.title)
    found: dict[str, str] = {}
    for task in sorted(tasks.values(), key=len, reverse=True):
        found = {**found, **{name: title for name, title in task.items() if name not in found}}
    count = Counter(found.values())
    return {
        name: title if count[title] == 1 else f"{title} ({name})" for name, title in found.items()
    }


def summarise(
    results: Sequence[TaskResult],
    metric: Metric = "accuracy",
    outcomes: Outcomes | None = None,
) -> list[Row]:
    """Return a row for each data set, number of shots and method, then the averages of each method.

    Args:
        results: of tasks.
        metric: what the test accuracies are.
        outcomes: which test images were right. Where they are known, accuracies have intervals of
            the bootstrap over seeds and images; the others have Student's t over seeds.

    The rows of a data set are followed by those of the targets that its heads were tested on, which
    are in no average.

    An average is over the data sets that all methods have at this number of shots, and over the
    seeds that all of these have. Where there is no such seed it averages the data sets' means and
    has no interval. One data set has no average.
    """
    if metric != "accuracy":
        outcomes = None
    ordered = in_order(results)
    order = list(titles_of(ordered))
    found: dict[tuple[str, int], dict[str, list[TaskResult]]] = {}
    for result in ordered:
        by_method = found.setdefault((result.dataset, result.shots), {})
        by_method.setdefault(result.method, []).append(result)
    groups = {
        place: {name: by_method[name] for name in order if name in by_method}
        for place, by_method in found.items()
    }
    rows: list[Row] = []
    for (dataset, _), group in groups.items():
        rows += [_row_of(dataset, members, metric, outcomes) for members in group.values()]
        rows += _target_rows(dataset, group, metric)
    for shots in sorted({shots for _, shots in groups}):
        here = {dataset: group for (dataset, other), group in groups.items() if other == shots}
        rows += _averages(here, order, metric, outcomes)
    return rows


def _row_of(
    dataset: str, members: Sequence[TaskResult], metric: Metric, outcomes: Outcomes | None
) -> Row:
    pairs = [_pair(result.test, result.method, metric) for result in members]
    return _row(dataset, [members], pairs, outcomes, not_shown=count_not_shown(members))


def _target_rows(dataset: str, group: _Group, metric: Metric) -> list[Row]:
    members = [result for members in group.values() for result in members]
    rows = []
    for target in dict.fromkeys(name for result in members for name in result.targets):
        for of_method in group.values():
            tested = [result for result in of_method if target in result.targets]
            pairs = [_pair(result.targets[target], result.method, metric) for result in tested]
            if pairs:
                rows.append(_row(f"{dataset} on {target}", [tested], pairs))
    return rows


def _averages(
    groups: Mapping[str, _Group],
    order: Sequence[str],
    metric: Metric,
    outcomes: Outcomes | None,
) -> list[Row]:
    """Return the averages at one number of shots, whose groups these are by data set."""
    methods = [name for name in order if any(name in group for group in groups.values())]
    shared = {dataset: group for dataset, group in groups.items() if len(group) == len(methods)}
    if len(shared) < 2:
        return []
    title = AVERAGE if len(shared) == len(groups) else f"{AVERAGE} of {len(shared)}"
    seeds = _common_seeds(shared.values())
    rows = []
    for method in methods:
        members = [
            [result for result in group[method] if not seeds or result.seed in seeds]
            for group in shared.values()
        ]
        pairs = [[_pair(result.test, method, metric) for result in of_set] for of_set in members]
        if seeds:
            averages = [_mean_pair(of_seed) for of_seed in zip(*pairs, strict=True)]
        else:
            averages = [_mean_pair([_mean_pair(of_set) for of_set in pairs])]
        rows.append(_row(title, members, averages, outcomes, averaged=tuple(shared)))
    return rows


def _common_seeds(groups: Iterable[_Group]) -> list[int]:
    seeds = [{result.seed for result in members} for group in groups for members in group.values()]
    return sorted(set.intersection(*seeds))


def _row(
    title: str,
    groups: Sequence[Sequence[TaskResult]],
    pairs: Sequence[_Pair],
    outcomes: Outcomes | None = None,
    not_shown: int = 0,
    averaged: tuple[str, ...] = (),
) -> Row:
    """Return the row of one method, whose accuracies `pairs` are and whose results `groups` has."""
    members = [result for group in groups for result in group]
    method = members[0].method
    before = [pair.zero_shot for pair in pairs]
    after = [pair.accuracy for pair in pairs]
    zero_shot, accuracy = mean_interval(before), mean_interval(after)
    gain = None if method == ZERO_SHOT else paired_difference(after, before)
    if outcomes is not None:
        zero_shot = outcomes.interval(groups, zero_shot.mean, ZERO_SHOT) or zero_shot
        accuracy = outcomes.interval(groups, accuracy.mean, method) or accuracy
        if gain is not None:
            gain = outcomes.interval(groups, gain.mean, method, minus=True) or gain
    return Row(
        dataset=title,
        shots=members[0].shots,
        method=method,
        seeds=len(pairs),
        selection=_selection(members),
        zero_shot=zero_shot,
        accuracy=accuracy,
        gain=gain,
        not_shown=not_shown,
        averaged=averaged,
    )


def _pair(test: TestResult, method: str, metric: Metric) -> _Pair:
    values = test.by(metric)
    return _Pair(values[ZERO_SHOT], values[method])


def _mean_pair(pairs: Sequence[_Pair]) -> _Pair:
    return _Pair(
        mean_interval([pair.zero_shot for pair in pairs]).mean,
        mean_interval([pair.accuracy for pair in pairs]).mean,
    )


def _selection(results: Sequence[TaskResult]) -> str:
    return ", ".join(sorted({_chosen_by(result.protocol) for result in results}))


def _chosen_by(protocol: Protocol) -> str:
    ending = "" if protocol.metric == "accuracy" else f", {protocol.metric.replace('_', ' ')}"
    if protocol.choose_by != "metric":
        ending += f" by {protocol.choose_by}"
    ending += ", refit" * protocol.refit + ", cautious" * protocol.cautious
    return protocol.selection + ending


def count_not_shown(results: Sequence[TaskResult]) -> int:
    """Return how many of the results have a gain that the validation samples do not show."""
    return sum(not result.validation.gain_shown for result in gaining(results))


def gaining(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Return the results of methods that can gain over zero-shot, which is all but itself."""
    return [result for result in results if result.method != ZERO_SHOT]
