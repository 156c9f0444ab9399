"""How one head and one alpha are preferred to others: on validation samples, and nothing else."""

from __future__ import annotations

import math

from safe_ray.specs import AlphaRow


def selection_score(accuracy: float, nll: float, samples: int) -> float:
    """Fold accuracy and negative log-likelihood into one number to maximise.

    Two accuracies over `samples` samples differ by at least `1 / samples`, and the second term
    stays below `1 / (samples + 1)`: so a higher accuracy always wins, and among equal accuracies
    the lower negative log-likelihood does.

    Args:
        accuracy: 0 to 1.
        nll: mean negative log-likelihood in nats, 0 or more.
        samples: the samples that both are over.
    """
    return accuracy - nll / (1.0 + nll) / (samples + 1)


def best_point(row: AlphaRow, samples: int, low: float = 0.0, high: float = 1.0) -> int:
    """Return the index of the best alpha in `[low, high]`; of equal ones, the smallest.

    Raises:
        ValueError: no alpha of the row lies in the range.
    """
    allowed = [i for i, a in enumerate(row.alphas) if low - 1e-9 <= a <= high + 1e-9]
    if not allowed:
        raise ValueError(f"no alpha of the row lies between {low} and {high}")
    scores = {i: selection_score(row.accuracy[i], row.nll[i], samples) for i in allowed}
    return max(allowed, key=lambda i: (scores[i] if math.isfinite(scores[i]) else -math.inf, -i))
