"""Whether the validation samples have the classes in the shares in which the data set has them.

Few-shot validation samples hold as many of each class, whatever a data set holds. Where its classes
are of very unequal size, accuracy on the samples is mean per class accuracy, and another number
than accuracy on the data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from safe_ray.data.manifest import Manifest
from safe_ray.data.readers import SPLITS
from safe_ray.specs import Metric, Task

MOST_APART = 0.1
"""The total variation distance of the shares from which on they are said to differ."""


def total_variation(first: Sequence[int], second: Sequence[int]) -> float:
    """Return half the summed absolute difference of two distributions: 0, equal, to 1, disjoint.

    It is the share of either that would have to be of another class for the two to be equal.

    Args:
        first: samples of each class.
        second: samples of each class, of something else.
    """
    one, other = (np.asarray(counts) / np.sum(counts) for counts in (first, second))
    return float(np.abs(one - other).sum() / 2)


def unlike_shares(
    manifests: Mapping[str, Manifest], samples: Mapping[Task, pa.Table], metric: Metric
) -> list[str]:
    """Return a warning for each data set whose classes are chosen on in other shares.

    Args:
        manifests: the data sets by name, with all of their splits.
        samples: what the candidates of each task are chosen on, its class indices in `label`.
        metric: what they are chosen by.
    """
    apart: dict[str, float] = {}
    for task, chosen_on in samples.items():
        manifest = manifests[task.dataset]
        distance = total_variation(_sizes(manifest), _count(chosen_on, len(manifest.classes)))
        apart[task.dataset] = max(distance, apart.get(task.dataset, 0.0))
    return [
        f"{name}: the classes have other shares among its {sum(_sizes(manifests[name]))} images "
        f"than among the validation samples (total variation distance {distance:.2f}, more than "
        f"{MOST_APART:g}): look at both accuracy and mean per class accuracy in the results. "
        f"Candidates are chosen by evaluation.metric={metric}, on the shares of the samples."
        for name, distance in apart.items()
        if distance > MOST_APART
    ]


def _sizes(manifest: Manifest) -> list[int]:
    counts = [_count(manifest.split(split), len(manifest.classes)) for split in SPLITS]
    return [sum(of_class) for of_class in zip(*counts, strict=True)]


def _count(table: pa.Table, classes: int) -> list[int]:
    return np.bincount(table.column("label").to_numpy(), minlength=classes).tolist()
