"""What is counted of classified samples, class by class."""

from __future__ import annotations

from torch import Tensor


def mean_per_class(correct: Tensor, samples: Tensor) -> Tensor:
    """Return the mean over the classes of the accuracy in each.

    Args:
        correct: `[..., classes]` correctly classified samples of each class.
        samples: `[classes]` samples of each class; a class without any is left out of the mean.

    Returns:
        `[...]` float64, 0 to 1.
    """
    there = samples > 0
    return (correct[..., there].double() / samples[there]).mean(dim=-1)
