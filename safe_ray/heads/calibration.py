"""Whether probabilities mean what they say, and one number that makes them mean it more."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

BINS = 15

# Few validation samples would have a head be as sure as it likes: log T has a prior around 0.
_PRIOR_DEVIATION = 0.5
_SEARCHED = math.log(20.0)
_STEPS = 60
# As many say what one number is; of more, these are taken evenly.
_SAMPLES = 4096
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error, 0 to 1, over bins of equal width.

    Args:
        confidence: `[N]`, the highest probability of each sample.
        right: `[N]` bool, whether its class is the right one.
        bins: how many.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    hits = np.bincount(places, right, bins)
    sure = np.bincount(places, confidence, bins)
    return float(np.abs(hits - sure).sum() / len(right))


@torch.no_grad()
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that logits are divided by before they become probabilities.

    It is the lowest of `sum_i -log softmax(logits_i / T)[label_i] + (log T)^2 / (2 * 0.5^2)`: the
    likelihood of labelled samples that the model has not seen, and a prior that holds T near 1
    where they are few. No class changes by it, for it keeps the order of the logits.

    Args:
        logits: `[N, classes]`.
        labels: `[N]` int64.

    Returns:
        T, between 1/20 and 20.

    Source: Guo et al. (see `calibration_error`), section 4.2; the prior is this project's own.
    """
    if len(labels) > _SAMPLES:
        rows = torch.linspace(0, len(labels) - 1, _SAMPLES, device=labels.device).long()
        logits, labels = logits[rows], labels[rows]
    logits = logits.double()

    def cost(log_t: float) -> float:
        nll = torch.nn.functional.cross_entropy(logits / math.exp(log_t), labels, reduction="sum")
        return float(nll) + log_t**2 / (2.0 * _PRIOR_DEVIATION**2)

    low, high = -_SEARCHED, _SEARCHED
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    costs = [cost(place) for place in inner]
    for _ in range(_STEPS):
        if costs[0] <= costs[1]:
            high, inner[1], costs[1] = inner[1], inner[0], costs[0]
            inner[0] = high - _GOLDEN * (high - low)
            costs[0] = cost(inner[0])
        else:
            low, inner[0], costs[0] = inner[0], inner[1], costs[1]
            inner[1] = low + _GOLDEN * (high - low)
            costs[1] = cost(inner[1])
    return math.exp((low + high) / 2.0)
