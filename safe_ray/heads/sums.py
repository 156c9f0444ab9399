"""What is counted of classified samples at each point of some knobs: sums that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safe_ray.heads.metrics import mean_per_class
from safe_ray.heads.selection import Rule, steps_of
from safe_ray.specs import Metric, Point


@dataclass(frozen=True)
class KnobSums:
    """Sums over samples at each of P points, which add up over folds and batches.

    Attributes:
        class_correct: `[P, classes]` int32, samples whose highest logit is the right class.
        gained: `[P]` int64, samples that are right here and wrong with the original model.
        lost: `[P]` int64, samples that are wrong here and right with the original model.
        nll: `[P]` float64, summed negative log-likelihood in nats.
        class_samples: `[classes]` int64, how many samples the sums are over.
    """

    class_correct: Tensor
    gained: Tensor
    lost: Tensor
    nll: Tensor
    class_samples: Tensor

    def __add__(self, other: KnobSums) -> KnobSums:
        return KnobSums(
            self.class_correct + other.class_correct,
            self.gained + other.gained,
            self.lost + other.lost,
            self.nll + other.nll,
            self.class_samples + other.class_samples,
        )

    @property
    def samples(self) -> int:
        """How many samples of all classes the sums are over."""
        return int(self.class_samples.sum())


def sums_of_hits(
    right: Tensor, nll: Tensor, right_before: Tensor, labels: Tensor, classes: int
) -> KnobSums:
    """Add up what is known of each sample at each point.

    Args:
        right: `[N, P]` bool, whether the sample is classified rightly.
        nll: `[P]` float64, summed over the samples.
        right_before: `[N]` bool, whether the original model classifies it rightly.
        labels: `[N]` int64.
        classes: how many there are.
    """
    before = right_before.unsqueeze(1)
    correct = torch.zeros(classes, right.shape[1], dtype=torch.int32, device=right.device)
    correct.index_add_(0, labels, right.int())
    sizes = torch.zeros(classes, dtype=torch.int64, device=right.device)
    sizes.index_add_(0, labels, torch.ones_like(labels))
    return KnobSums(
        correct.t().cpu(),
        (right & ~before).sum(0).cpu(),
        (before & ~right).sum(0).cpu(),
        nll.cpu(),
        sizes.cpu(),
    )


def figures_of(
    sums: KnobSums, points: Sequence[Mapping[str, float]], rule: Rule
) -> tuple[Point, ...]:
    """Return what the sums come to at each of their points, with the score that a rule gives.

    Args:
        sums: of P points.
        points: P values of each knob.
        rule: what is best.
    """
    samples = sums.samples
    columns: dict[Metric, list[float]] = {
        "accuracy": (sums.class_correct.sum(-1).double() / samples).tolist(),
        "mean_per_class": mean_per_class(sums.class_correct, sums.class_samples).tolist(),
    }
    steps = steps_of(rule.metric, sums.class_samples.tolist())
    nll, gained, lost = (sums.nll / samples).tolist(), sums.gained.tolist(), sums.lost.tolist()
    return tuple(
        Point(
            accuracy=columns["accuracy"][index],
            mean_per_class=columns["mean_per_class"][index],
            nll=nll[index],
            gained=gained[index],
            lost=lost[index],
            score=rule.score(columns[rule.metric][index], nll[index], steps, samples, point),
        )
        for index, point in enumerate(points)
    )
