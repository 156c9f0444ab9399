"""Folds of a support set, for cross-validation."""

from __future__ import annotations

from collections.abc import Sequence


def fold_of(labels: Sequence[int], samples: Sequence[str], folds: int) -> tuple[int, ...]:
    """Assign each support sample to a fold, so that each class is spread over the folds.

    A sample that occurs several times is always in the same fold, so that nothing is validated on
    what it was trained on. With one shot a class, a fold leaves out whole classes from training:
    their text embeddings still classify them, which is what the blend is asked to keep.
    """
    seen: dict[int, int] = {}
    fold: dict[str, int] = {}
    for label, sample in zip(labels, samples, strict=True):
        if sample not in fold:
            place = seen.get(label, 0)
            seen[label] = place + 1
            fold[sample] = (place + label) % folds
    return tuple(fold[sample] for sample in samples)
