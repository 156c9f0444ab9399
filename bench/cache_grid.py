"""A cache's grid of 200 betas and 20 gammas is solved 100 or more times faster than point by point.

The usual form is the double loop of Tip-Adapter's published search: at each point the affinities,
their exponentials, the product with the one-hot labels, the logits and the best class. The cross
entropy is added to it, for ours gives it as well. A random subset of the points is timed, in turns
with the whole grid of ours, and scaled to all of them.

Beside the claim stands the ratio to a loop that computes affinities and zero-shot logits once.

Source: Zhang et al., "Tip-Adapter", ECCV 2022; `search_hp` in `utils.py` of
github.com/gaopengcuhk/Tip-Adapter, where gamma is `alpha`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.harness import arguments, finish, interleave, pin
from safe_ray.heads.sums import KnobSums
from safe_ray.methods import TaskData
from safe_ray.methods.adapted import Adapted
from safe_ray.methods.features import GivenFeatures

_SCALE, _TARGET = 100.0, 100.0
# In float32, logits that are this near to each other may be ordered either way.
_TIE = 1e-3

Points = Sequence[tuple[float, float]]
"""Beta and gamma of each point."""


@dataclass(frozen=True)
class Problem:
    """Features of made-up samples, one view each.

    Attributes:
        support: `[S, D]`, not normalised.
        labels: `[S]`.
        tested: `[N, D]`, not normalised.
        right: `[N]`, the right classes.
        classifier: `[classes, D]`, normalised.
    """

    support: Tensor
    labels: Tensor
    tested: Tensor
    right: Tensor
    classifier: Tensor

    @classmethod
    def draw(cls, classes: int, shots: int, tested: int, width: int) -> Problem:
        """Draw classes that overlap, so that the accuracy varies over the grid."""
        centres = torch.randn(classes, width)
        classifier = functional.normalize(torch.randn(classes, width), dim=-1)
        labels = torch.arange(classes).repeat_interleave(shots)
        right = torch.arange(tested) % classes

        def samples(of: Tensor) -> Tensor:
            text = 0.1 * width**0.5 * classifier[of]
            return 0.25 * centres[of] + text + torch.randn(len(of), width)

        return cls(samples(labels), labels, samples(right), right, classifier)

    def double(self) -> Problem:
        """Return the same in float64."""
        return Problem(
            self.support.double(),
            self.labels,
            self.tested.double(),
            self.right,
            self.classifier.double(),
        )


def solved(problem: Problem, betas: Sequence[float], gammas: Sequence[float]) -> KnobSums:
    """Solve the grid as a search does."""
    support = GivenFeatures(problem.support.unsqueeze(1))
    task = TaskData(support, problem.labels, problem.classifier, _SCALE, {})
    [fitted] = Adapted().fit(task, [{}])
    tested = GivenFeatures(problem.tested.unsqueeze(1))
    return fitted.sums(tested, problem.right, {"beta": betas, "gamma": gammas}, {})


def looped(
    problem: Problem, points: Points, once: bool = False, each: Callable[[Tensor], object] = id
) -> tuple[list[int], list[float]]:
    """Visit points one by one, as published.

    Args:
        problem: what to classify.
        points: where.
        once: compute affinities and zero-shot logits before the loop.
        each: is given the logits of each point.

    Returns:
        How many samples are right at each point, and the summed negative log-likelihood in nats.
    """
    keys = functional.normalize(problem.support, dim=-1).t().contiguous()
    features = functional.normalize(problem.tested, dim=-1)
    weights = problem.classifier.t().contiguous()
    values = functional.one_hot(problem.labels, len(problem.classifier)).to(keys.dtype)
    affinity, zero_shot = features @ keys, _SCALE * features @ weights
    correct, nll = [], []
    for beta, gamma in points:
        if not once:
            affinity, zero_shot = features @ keys, _SCALE * features @ weights
        logits = zero_shot + gamma * ((beta * affinity - beta).exp() @ values)
        correct.append(int((logits.argmax(-1) == problem.right).sum()))
        nll.append(float(functional.cross_entropy(logits, problem.right, reduction="sum")))
        each(logits)
    return correct, nll


def check(
    problem: Problem, betas: Sequence[float], gammas: Sequence[float], chosen: Sequence[int]
) -> None:
    """Stop unless both forms say the same at the chosen points.

    In float64 as many samples have to be right. In float32 they may be more or fewer by those
    whose right class is tied with another one up to rounding.

    Raises:
        SystemExit: they do not.
    """
    grid = [(beta, gamma) for beta in betas for gamma in gammas]
    points = [grid[index] for index in chosen]
    exact, usual = solved(problem.double(), betas, gammas), looped(problem.double(), points)
    if exact.class_correct.sum(-1)[chosen].tolist() != usual[0]:
        raise SystemExit("the accuracies differ in float64: the sides are not equal")
    ties: list[int] = []

    def count_ties(logits: Tensor) -> None:
        own = logits.gather(1, problem.right.unsqueeze(1))
        others = logits.scatter(1, problem.right.unsqueeze(1), -torch.inf).amax(1, keepdim=True)
        ties.append(int(((own - others).abs() < _TIE).sum()))

    found = solved(problem, betas, gammas)
    correct, nll = (torch.tensor(own) for own in looped(problem, points, each=count_ties))
    apart = (found.class_correct.sum(-1)[chosen] - correct).abs()
    if bool((apart > torch.tensor(ties)).any()):
        raise SystemExit("the accuracies differ in float32 by more than ties: they are not equal")
    error = float(((found.nll[chosen] - nll).abs() / nll).max())
    if not error <= 1e-4:
        raise SystemExit(f"the likelihoods differ by {error:.1e}: the sides are not equal")
    lowest, highest = int(correct.min()), int(correct.max())
    print(
        f"{len(chosen)} random points of {len(grid)} are equal: in float64 all accuracies, in "
        f"float32 all but {int((apart > 0).sum())}, by ties; likelihoods up to {error:.0e}; "
        f"{lowest} to {highest} of {len(problem.right)} samples are right"
    )


def main() -> None:
    """Check both sides, and time them."""
    quick = arguments(str(__doc__)).quick
    pin()
    classes, shots, tested, width = (4, 3, 8, 16) if quick else (100, 16, 400, 512)
    steps, repeats = ((5, 4), 1) if quick else ((200, 20), 5)
    problem = Problem.draw(classes, shots, tested, width)
    # The published grids: evenly from 0.1 to below 7 and 3.
    betas, gammas = (
        [0.1 + step * (end - 0.1) / count for step in range(count)]
        for end, count in zip((7.0, 3.0), steps, strict=True)
    )
    grid = [(beta, gamma) for beta in betas for gamma in gammas]
    order = torch.randperm(len(grid)).tolist()
    check(problem, betas, gammas, order[:200])
    timed = [grid[index] for index in order[:20]]
    medians = interleave(
        {
            "usual": lambda: looped(problem, timed),
            "once": lambda: looped(problem, timed, once=True),
            "ours": lambda: solved(problem, betas, gammas),
        },
        repeats,
    )
    scale = len(grid) / len(timed)
    usual, once, ours = scale * medians["usual"], scale * medians["once"], medians["ours"]
    print(
        f"{classes} classes, {shots} shots, {tested} samples, {len(betas)} betas, {len(gammas)} "
        f"gammas: point by point {usual:.1f} s, with affinities computed once {once:.1f} s (both "
        f"scaled from {len(timed)} random points); ours {ours:.3f} s"
    )
    finish(
        "cache_grid",
        usual / ours,
        _TARGET,
        ratio_with_affinities_once=round(once / ours, 1),
        usual_seconds=round(usual, 1),
        seconds=round(ours, 3),
    )


if __name__ == "__main__":
    main()
