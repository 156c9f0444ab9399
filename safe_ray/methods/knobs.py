"""Knobs: what a fitted method leaves open, and how the validation samples decide it.

A table holds every point of a grid of one or two knobs. Where there are more, groups of knobs are
solved in turn, each exactly and with the others as they are, twice through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_ray.heads.selection import Rule
from safe_ray.heads.sums import KnobSums, figures_of, sums_of_hits
from safe_ray.specs import Point

Grid = Mapping[str, Sequence[float]]
"""The values of each knob that varies; the last knob varies fastest."""

_PASSES = 2


def points_of(grid: Grid) -> list[dict[str, float]]:
    """Return every point of a grid, the last knob varying fastest; one empty point of no knobs."""
    points: list[dict[str, float]] = [{}]
    for name, values in grid.items():
        points = [{**point, name: value} for point in points for value in values]
    return points


@torch.no_grad()
def sums_of_logits(
    logits: Callable[[Mapping[str, float]], Tensor],
    zero_shot: Tensor,
    labels: Tensor,
    grid: Grid,
    at: Mapping[str, float],
) -> KnobSums:
    """Evaluate logits at each point of a grid, one point after another.

    Args:
        logits: of the N samples at a value for each knob, `[N, classes]`.
        zero_shot: the original model's logits, `[N, classes]`.
        labels: `[N]` int64.
        grid: the knobs that vary.
        at: the others.
    """
    right, nll = [], []
    for point in points_of(grid):
        values = logits({**at, **point})
        right.append(values.argmax(-1) == labels)
        odds = torch.log_softmax(values.double(), -1)
        nll.append(-odds.gather(1, labels.unsqueeze(1)).sum())
    before = zero_shot.argmax(-1) == labels
    return sums_of_hits(
        torch.stack(right, 1), torch.stack(nll), before, labels, zero_shot.shape[-1]
    )


@dataclass(frozen=True)
class KnobTable:
    """A `Point` at every point of a grid: what the sums come to.

    Attributes:
        knobs: what the grid varies.
        points: a value for each knob, the fixed ones included.
        figures: what the sums come to at each point.
    """

    knobs: tuple[str, ...]
    points: tuple[dict[str, float], ...]
    figures: tuple[Point, ...]

    @classmethod
    def of(cls, sums: KnobSums, grid: Grid, at: Mapping[str, float], rule: Rule) -> KnobTable:
        """Return the figures of a grid, with the score that a rule gives to each."""
        points = tuple({**at, **point} for point in points_of(grid))
        return cls(tuple(grid), points, figures_of(sums, points, rule))

    @property
    def best(self) -> int:
        """The index of the highest score; of equal ones, the first."""

        def score(index: int) -> float:
            value = self.figures[index].score
            return value if math.isfinite(value) else -math.inf

        return max(range(len(self.figures)), key=lambda index: (score(index), -index))


@dataclass(frozen=True)
class Solution:
    """The knobs as the validation samples decide them.

    Attributes:
        at: a value for each knob.
        point: what the validation samples say there.
        tables: the last table of each group of knobs that was solved.
    """

    at: dict[str, float]
    point: Point
    tables: tuple[KnobTable, ...]


def solve(
    evaluate: Callable[[Grid, Mapping[str, float]], KnobSums],
    groups: Sequence[Sequence[str]],
    knobs: Mapping[str, Sequence[float]],
    rule: Rule,
    start: Mapping[str, float] | None = None,
) -> Solution:
    """Decide a method's knobs.

    Args:
        evaluate: the sums of a grid of some knobs, at given values of the others.
        groups: which knobs are solved together.
        knobs: the values that each may take; one value is a knob that is fixed.
        rule: what is best.
        start: where the coordinate passes begin; the middle of each grid by default.
    """
    at = {name: values[len(values) // 2] for name, values in knobs.items()}
    at.update(start or {})
    open_groups = [
        {name: knobs[name] for name in group if len(knobs[name]) > 1} for group in groups
    ]
    open_groups = [group for group in open_groups if group]
    if not open_groups:
        table = KnobTable.of(evaluate({}, at), {}, at, rule)
        return Solution(at, table.figures[0], (table,))
    tables: list[KnobTable] = []
    for _ in range(_PASSES if len(open_groups) > 1 else 1):
        tables = []
        for group in open_groups:
            others = {name: value for name, value in at.items() if name not in group}
            table = KnobTable.of(evaluate(group, others), group, others, rule)
            at = dict(table.points[table.best])
            tables.append(table)
    return Solution(at, tables[-1].figures[tables[-1].best], tuple(tables))
