"""Test images for the report's pictures: which ones, and where the poolings look in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.heads.artifact import load_head
from safe_ray.heads.bank import tuned_logits
from safe_ray.methods.attention import look_at
from safe_ray.methods.base import Fitted, TaskData
from safe_ray.methods.features import MappedFeatures
from safe_ray.poolings.base import Pooling
from safe_ray.search.choosing import Winner

IMAGES, IMAGES_A_TASK = 300, 24
"""How many images a report has at most, and of each task: a page of them stays small."""


@dataclass(frozen=True)
class Wanted:
    """Pictures of one task.

    Attributes:
        method: whose.
        images: how many at most.
    """

    method: str
    images: int


@dataclass(frozen=True, eq=False)
class Looks:
    """Where the poolings look in M test samples, and what is said of them.

    Attributes:
        method: the method's name.
        rows: `[M]`, their places in the test split.
        original_said: `[M]` int64, the class that the original model says.
        original_probability: `[M]` float32, of that class.
        said: `[M]` int64, the class that the method says.
        probability: `[M]` float32, of that class, calibrated.
        original: `[M, h, w]` float32, the attention of the original pooling.
        tuned: `[M, h, w]` float32, that of the method's.
    """

    method: str
    rows: tuple[int, ...]
    original_said: np.ndarray
    original_probability: np.ndarray
    said: np.ndarray
    probability: np.ndarray
    original: np.ndarray
    tuned: np.ndarray


def images_a_task(tasks: int) -> int:
    """Return how many images each of so many tasks may have."""
    return min(IMAGES_A_TASK, IMAGES // tasks)


def chosen_rows(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, classes: int, images: int
) -> list[int]:
    """Return which of N samples to show, class by class.

    Every class has as many, and of classes that are too many it is the worst and the best ones. In
    a class, a sample that only the method has right comes first, then one that only the original
    model has right, then the others in their order.

    Args:
        labels: `[N]` class indices.
        before: `[N]` bool, whether the original model is right.
        after: `[N]` bool, whether the method is.
        classes: how many there are.
        images: how many samples at most.
    """
    counts = np.bincount(labels, minlength=classes)
    there = [place for place in range(classes) if counts[place]]
    if not there or images < 1:
        return []
    right = np.bincount(labels[after], minlength=classes)
    ranked = sorted(there, key=lambda place: right[place] / counts[place])
    if len(ranked) > images:
        worst = images // 2
        ranked = ranked[:worst] + ranked[len(ranked) - (images - worst) :]
    each = images // len(ranked)
    rows = []
    for place in sorted(ranked):
        own = np.flatnonzero(labels == place)
        telling = [own[after[own] & ~before[own]][:1], own[before[own] & ~after[own]][:1]]
        rows += list(dict.fromkeys(np.concatenate([*telling, own]).tolist()))[:each]
    return rows


def look_closely(
    maps: Tensor,
    rows: Sequence[int],
    winner: Winner,
    fitted: Fitted,
    task: TaskData,
    pooling: Pooling,
) -> Looks | None:
    """Return where the poolings look in some samples; None if the pooling cannot say it.

    Args:
        maps: `[M, L, C]`, their dense maps, at least one.
        rows: their places in the test split.
        winner: the method, and the values of its knobs.
        fitted: what it makes of its files.
        task: classifier and original pooling.
        pooling: what the states are of.
    """
    device = task.classifier.device
    try:
        look = look_at(maps, fitted, winner.at, pooling, task.original, device)
    except InputError:
        # A family of another make; the report does without.
        return None
    features = MappedFeatures(maps.unsqueeze(1), pooling, task.original, device)
    original = tuned_logits(features.original[:, 0], task.classifier, task.logit_scale).cpu()
    card = {} if winner.folder is None else load_head(winner.folder)[1]
    temperature = float(card.get("calibration", {}).get("temperature", 1.0))
    sure, said = torch.softmax(look.logits / temperature, -1).max(-1)
    was_sure, was_said = torch.softmax(original.float(), -1).max(-1)
    return Looks(
        winner.method.name,
        tuple(rows),
        was_said.numpy(),
        was_sure.numpy(),
        said.numpy(),
        sure.numpy(),
        look.original.numpy(),
        look.tuned.numpy(),
    )
