"""The test report: one pass of a data set's test maps serves every winning head of that data set.

This is the only place where test samples meet a head, and it runs after the search has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from safe_ray.heads.artifact import load_head
from safe_ray.heads.blending import blend_logits
from safe_ray.poolings.base import HeadState, Pooling
from safe_ray.poolings.pooled import pool_with_heads
from safe_ray.training.job import CLASSIFIER, TaskFacts, load_pooling

_T = TypeVar("_T")
_HEADS_AT_ONCE = 64


@dataclass(frozen=True)
class Winner:
    """The head that a task's search ended with.

    Attributes:
        task_id: the task.
        folder: the folder of its head.
        alpha: the chosen blend.
    """

    task_id: str
    folder: Path
    alpha: float


@dataclass(frozen=True)
class TestCounts:
    """Correctly classified test samples of one task, a number for each class.

    Attributes:
        zero_shot: with the original pooling (alpha = 0).
        tuned_only: with the tuned pooling alone (alpha = 1).
        safe: with the blend at the chosen alpha.
        samples: test samples.
    """

    zero_shot: tuple[int, ...]
    tuned_only: tuple[int, ...]
    safe: tuple[int, ...]
    samples: tuple[int, ...]

    __test__ = False


@torch.no_grad()
def count_correct(
    sweep: Path,
    winners: Sequence[Winner],
    samples: Sequence[str],
    labels: Sequence[int],
    device: torch.device,
    rows_at_once: int,
    columns: Sequence[int] | None = None,
) -> dict[str, TestCounts]:
    """Classify the test samples of one data set with each of its tasks' winning heads.

    Args:
        sweep: the sweep's folder.
        winners: winning heads of tasks of one data set, which share its classifier and its store.
        samples: sample digests of the test split.
        labels: class indices of the test split.
        device: where to compute.
        rows_at_once: test samples whose maps are in memory at once.
        columns: which of the tasks' classes the labels count through, for a target that has not
            all of them or has them in another order; None is all, in their own order.

    Returns:
        The counts of each task, by task id.
    """
    folder = sweep / "tasks" / winners[0].task_id
    facts = TaskFacts.load(folder)
    classifier = load_file(folder / CLASSIFIER)["classifier"].to(device)
    if columns is not None:
        classifier = classifier[list(columns)]
    original = load_pooling(sweep)
    store = facts.store()
    classes = classifier.shape[0]
    correct = torch.zeros(len(winners), 3, classes, dtype=torch.int64)
    for places in _pieces(range(len(winners)), _HEADS_AT_ONCE):
        heads = [load_head(winners[place].folder)[0] for place in places]
        alphas = [winners[place].alpha for place in places]
        for rows in _pieces(range(len(samples)), rows_at_once):
            maps = torch.from_numpy(store.read([samples[row] for row in rows], (0,)))[:, 0]
            target = torch.tensor([labels[row] for row in rows])
            hits = count_hits(
                heads,
                alphas,
                original,
                facts.pool(),
                maps,
                target,
                classifier,
                facts.logit_scale,
            )
            correct[list(places)] += hits.cpu()
    sizes = torch.bincount(torch.tensor(labels), minlength=classes).tolist()
    return {
        winner.task_id: TestCounts(*(tuple(counts) for counts in (*of_winner, sizes)))
        for winner, of_winner in zip(winners, correct.tolist(), strict=True)
    }


@torch.no_grad()
def count_hits(
    heads: Sequence[HeadState],
    alphas: Sequence[float],
    original: HeadState,
    pooling: Pooling,
    maps: Tensor,
    labels: Tensor,
    classifier: Tensor,
    logit_scale: float,
) -> Tensor:
    """Count the maps of each class that K heads classify rightly, on the classifier's device.

    Args:
        heads: K tuned heads.
        alphas: the chosen blend of each.
        original: the original pooling.
        pooling: what the heads are states of.
        maps: `[N, L, C]` dense maps.
        labels: `[N]` int64 class indices.
        classifier: `[classes, D]`, normalised rows.
        logit_scale: the model's, already exponentiated.

    Returns:
        `[K, 3, classes]` int64: at alpha = 0, at alpha = 1 and at the chosen alpha.
    """
    device = classifier.device
    labels = labels.to(device)
    base = pool_with_heads([original], pooling, maps, device)[0]
    tuned = pool_with_heads(heads, pooling, maps, device)
    hits = torch.stack(
        [
            blend_logits(features, base, classifier, logit_scale, blend).argmax(-1) == labels
            for features, alpha in zip(tuned, alphas, strict=True)
            for blend in (0.0, 1.0, alpha)
        ]
    )
    counts = torch.zeros(len(hits), classifier.shape[0], dtype=torch.int64, device=device)
    return counts.index_add_(1, labels, hits.long()).view(len(heads), 3, -1)


def _pieces(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
