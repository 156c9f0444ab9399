"""Methods are fitted to a task's support samples, and judged on samples that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_ray.features.store import FeatureStore
from safe_ray.heads.calibration import fit_temperature
from safe_ray.methods.base import Fitted, TaskData, make_method
from safe_ray.methods.features import Features
from safe_ray.methods.knobs import Grid, KnobSums, Solution, solve
from safe_ray.poolings.base import HeadState
from safe_ray.specs import KnobRow, MethodGroup, MethodSpec, Values
from safe_ray.training.facts import TaskFacts
from safe_ray.training.features import StoredFeatures
from safe_ray.training.folds import fold_of

# Features of so many bytes are in memory at once; they decide how many heads are judged together.
_FEATURE_BYTES = 2**30


@dataclass(frozen=True)
class Judged:
    """A method that is fitted to all support samples, and its knobs as others decide them.

    Attributes:
        fitted: the method.
        solution: its knobs, and the figures of the samples that decided them.
        temperature: that makes its probabilities those of these samples.
    """

    fitted: Fitted
    solution: Solution
    temperature: float = 1.0

    def rows(self) -> dict[str, KnobRow]:
        """Return the figures along each knob that was solved by itself."""
        return {
            knob: KnobRow.of([point[knob] for point in table.points], table.figures)
            for table in self.solution.tables
            for knob in table.knobs
            if len(table.knobs) == 1
        }

    @property
    def is_finite(self) -> bool:
        """Whether every figure that is kept is a number."""
        points = [self.solution.point, *(p for t in self.solution.tables for p in t.figures)]
        return all(math.isfinite(point.nll) and math.isfinite(point.score) for point in points)


def judge_candidates(
    facts: TaskFacts,
    group: MethodGroup,
    candidates: Sequence[Values],
    heads: Sequence[HeadState],
    original: HeadState,
    classifier: Tensor,
) -> list[dict[str, Judged]]:
    """Fit every method of a group with every candidate, and solve its knobs.

    Args:
        facts: the task.
        group: the methods.
        candidates: K of them.
        heads: K trained heads, and in cross-validation K more for each fold, which have not seen
            it; empty where the methods need none.
        original: the original head.
        classifier: `[classes, D]`, on the device to compute on.

    Returns:
        Of each candidate what came of each method, by its name. A method whose figures are not all
        finite is left out.
    """
    judge = _Judge(facts, group, original, classifier)
    members = 1 + (facts.folds if facts.selection == "cross" else 0)
    samples = len(facts.support) * (facts.views + 2) + len(facts.validation)
    size = max(1, _FEATURE_BYTES // (4 * samples * members * classifier.shape[1]))
    judged: list[dict[str, Judged]] = []
    for first in range(0, len(candidates), size):
        block = range(first, min(first + size, len(candidates)))
        some = [
            [heads[member * len(candidates) + slot] for slot in block] if heads else []
            for member in range(members)
        ]
        judged += judge.block([candidates[slot] for slot in block], some)
    return judged


@dataclass(frozen=True)
class _Split:
    """What a method is fitted to, and what it is judged on."""

    task: TaskData
    features: Features
    labels: Tensor


class _Judge:
    def __init__(
        self, facts: TaskFacts, group: MethodGroup, original: HeadState, classifier: Tensor
    ) -> None:
        self._facts = facts
        self._group = group
        self._original = original
        self._classifier = classifier
        self._store: FeatureStore = facts.store()
        self._labels = torch.tensor(facts.support_labels, device=classifier.device)

    def block(
        self, candidates: Sequence[Values], heads: Sequence[Sequence[HeadState]]
    ) -> list[dict[str, Judged]]:
        """Judge some candidates; `heads` are the whole support set's, then each fold's."""
        whole = self._task(range(len(self._labels)), heads[0])
        splits = self._splits(whole, heads)
        judged: list[dict[str, Judged]] = [{} for _ in candidates]
        for spec in self._group.methods:
            for found, one in zip(
                judged, self._judge(spec, candidates, whole, splits), strict=True
            ):
                if one.is_finite:
                    found[spec.name] = one
        return judged

    def _judge(
        self,
        spec: MethodSpec,
        candidates: Sequence[Values],
        whole: TaskData,
        splits: Sequence[_Split],
    ) -> list[Judged]:
        method = make_method(spec.module, spec.options)
        fitted = method.fit(whole, candidates)
        seen = [
            fitted if split.task is whole else method.fit(split.task, candidates)
            for split in splits
        ]

        def evaluate(slot: int) -> Callable[[Grid, Mapping[str, float]], KnobSums]:
            def sums(grid: Grid, at: Mapping[str, float]) -> KnobSums:
                first, *others = (
                    of_split[slot].sums(split.features, split.labels, grid, at)
                    for of_split, split in zip(seen, splits, strict=True)
                )
                return sum(others, first)

            return sums

        def temperature(slot: int, at: Mapping[str, float]) -> float:
            logits = [
                of_split[slot].logits(split.features, at)
                for of_split, split in zip(seen, splits, strict=True)
            ]
            # One copy to the host, where the search for one number asks for a value at each step.
            labels = torch.cat([split.labels for split in splits])
            return fit_temperature(torch.cat(logits).cpu(), labels.cpu())

        judged = []
        for slot, one in enumerate(fitted):
            solution = solve(evaluate(slot), method.knobs, spec.knobs, self._facts.rule)
            judged.append(Judged(one, solution, temperature(slot, solution.at)))
        return judged

    def _splits(self, whole: TaskData, heads: Sequence[Sequence[HeadState]]) -> list[_Split]:
        facts = self._facts
        if facts.selection != "cross":
            if not facts.validation:
                raise ValueError(f"{facts.task.id} has nothing to validate on")
            labels = torch.tensor(facts.validation_labels, device=self._labels.device)
            features = self._features(facts.validation, range(1), heads[0])
            return [_Split(whole, features, labels)]
        places = fold_of(facts.support_labels, facts.support, facts.folds)
        splits = []
        for fold, own in enumerate(heads[1:]):
            held_out = [row for row, place in enumerate(places) if place == fold]
            rest = [row for row, place in enumerate(places) if place != fold]
            if held_out:
                samples = [facts.support[row] for row in held_out]
                features = self._features(samples, range(1), own)
                splits.append(_Split(self._task(rest, own), features, self._labels[held_out]))
        if not splits:
            raise ValueError(f"{facts.task.id} has no support samples to validate on")
        return splits

    def _task(self, rows: Sequence[int], heads: Sequence[HeadState]) -> TaskData:
        facts = self._facts
        samples = [facts.support[row] for row in rows]
        return TaskData(
            self._features(samples, range(facts.views + 1), heads),
            self._labels[list(rows)],
            self._classifier,
            facts.logit_scale,
            self._original,
            heads,
            facts.training_seed,
        )

    def _features(
        self, samples: Sequence[str], views: Sequence[int], heads: Sequence[HeadState]
    ) -> StoredFeatures:
        pooling, device = self._facts.pool(), self._classifier.device
        return StoredFeatures(self._store, samples, views, pooling, self._original, device, heads)
