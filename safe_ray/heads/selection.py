"""How one head and one alpha are preferred to others: on validation samples, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from safe_ray.specs import Metric

ChooseBy = Literal["metric", "nll", "nll_prior", "metric_nll_prior"]

LEVEL = 0.05
"""How likely a gain may be by chance alone and still count as shown."""

# A score keeps 16 digits: nine for the metric leave seven for the negative log-likelihood.
_MOST_STEPS = 10**9


# Of the prior on alpha that `nll_prior` has.
_PRIOR_MEAN, _PRIOR_DEVIATION = 0.5, 0.15


@dataclass(frozen=True)
class Rule:
    """By what one candidate, and one point of its knobs, is preferred to others.

    Attributes:
        metric: what the person asks for.
        choose_by: `metric` takes the highest value of the metric, and among equal ones the lowest
            negative log-likelihood; `nll` the lowest negative log-likelihood; `nll_prior` that of
            the n samples together, plus `(alpha - 0.5)^2 / (2 * 0.15^2)` where there is an alpha;
            `metric_nll_prior` the highest n times the metric, less the sum of `nll_prior`.
    """

    metric: Metric = "accuracy"
    choose_by: ChooseBy = "metric"

    def score(
        self, value: float, nll: float, steps: int, samples: int, at: Mapping[str, float]
    ) -> float:
        """Return the number to maximise.

        Args:
            value: of the metric, 0 to 1.
            nll: mean negative log-likelihood in nats.
            steps: see `steps_of`.
            samples: n, the validation samples.
            at: a value for each knob.
        """
        if self.choose_by == "metric":
            return selection_score(value, nll, steps)
        score = -nll + (value if self.choose_by == "metric_nll_prior" else 0.0)
        if self.choose_by == "nll" or "alpha" not in at:
            return score
        away = (at["alpha"] - _PRIOR_MEAN) / _PRIOR_DEVIATION
        return score - away * away / (2 * samples)


def automatic_rule(samples: int, classes: int) -> ChooseBy:
    """Return how `search.choose_by=auto` chooses, from so many validation samples of all classes.

    One sample a class says more by its likelihood than by being right or wrong; from two on
    the metric chose as well or better (docs/selection.md).
    """
    return "nll_prior" if samples < 2 * classes else "metric"


def selection_score(value: float, nll: float, steps: int) -> float:
    """Fold a metric and the negative log-likelihood into one number to maximise.

    Two values of the metric differ by at least `1 / steps`, and the second term stays below
    `1 / (steps + 1)`: so a higher value always wins, and among equal values the lower negative
    log-likelihood does.

    Args:
        value: of the metric, 0 to 1.
        nll: mean negative log-likelihood in nats, 0 or more.
        steps: see `steps_of`.
    """
    return value - nll / (1.0 + nll) / (steps + 1)


def steps_of(metric: Metric, class_samples: Sequence[int]) -> int:
    """Return the number of which every value of a metric is a multiple of the inverse.

    For accuracy that is the number of samples. For mean per class accuracy it is the number of
    classes times the least common multiple of their sizes, at most 10^9: there, values that differ
    by less count as equal.

    Args:
        metric: what is chosen by.
        class_samples: validation samples of each class; a class without any has no say.
    """
    sizes = [size for size in class_samples if size]
    if metric == "accuracy":
        return sum(sizes)
    return min(len(sizes) * math.lcm(*sizes), _MOST_STEPS)


def shows_gain(gained: int, lost: int) -> bool:
    """Whether validation samples show a gain over the original pooling beyond chance.

    The test is McNemar's in its exact form, the sign test on the samples that one of the two gets
    right and the other wrong: were both equally good, each such sample would be a coin's throw. The
    gain is shown if `gained` heads or more would come up with a probability of at most 5%
    (`LEVEL`, one-sided). Each sample counts once, whichever metric chose the point.

    The chosen point is the best of many, which the test does not know: it errs towards a gain.

    Args:
        gained: samples that are right at the chosen point and wrong at alpha = 0.
        lost: samples that are wrong at the chosen point and right at alpha = 0.
    """
    if gained <= lost:
        return False
    from scipy.special import bdtrc

    return bool(bdtrc(gained - 1, gained + lost, 0.5) <= LEVEL)
