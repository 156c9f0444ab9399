"""The test report: one pass of a data set's test maps serves every winner on that data set.

This is the only place where test samples meet a fitted method, and it runs after the search has
ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from safe_ray.heads.artifact import load_head
from safe_ray.heads.bank import tuned_logits
from safe_ray.heads.calibration import calibration_error
from safe_ray.heads.metrics import mean_per_class
from safe_ray.methods.base import Fitted, TaskData, make_method
from safe_ray.methods.features import MappedFeatures
from safe_ray.search.choosing import Winner
from safe_ray.sweep.looking import Looks, Wanted, chosen_rows, look_closely
from safe_ray.training.facts import TaskFacts, load_classifier, load_pooling


@dataclass(frozen=True)
class TestOutcome:
    """How N test samples are classified.

    Attributes:
        said: `[N]` int64, the class with the highest logit.
        confidence: `[N]` float32, the highest probability.
        labels: `[N]` int64, the right classes.
        classes: how many there are.
    """

    said: np.ndarray
    confidence: np.ndarray
    labels: np.ndarray
    classes: int

    __test__ = False

    @property
    def right(self) -> np.ndarray:
        """`[N]` bool, whether the highest logit is the right class."""
        right: np.ndarray = self.said == self.labels
        return right

    @property
    def class_correct(self) -> np.ndarray:
        """`[classes]` int64, rightly classified samples of each class."""
        return np.bincount(self.labels[self.right], minlength=self.classes)

    @property
    def class_samples(self) -> np.ndarray:
        """`[classes]` int64."""
        return np.bincount(self.labels, minlength=self.classes)

    @property
    def accuracy(self) -> float:
        """0 to 1, over all samples."""
        return float(self.right.mean())

    @property
    def mean_per_class(self) -> float:
        """0 to 1, the mean over the classes with samples of the accuracy in each."""
        correct, samples = map(torch.from_numpy, (self.class_correct, self.class_samples))
        return float(mean_per_class(correct, samples))

    @property
    def calibration_error(self) -> float:
        """The expected calibration error, 0 to 1 (see `safe_ray.heads.calibration`)."""
        return calibration_error(self.confidence, self.right)


@dataclass(frozen=True)
class TaskTest:
    """What the test samples say of one task.

    Attributes:
        zero_shot: of the original model.
        methods: of each method that has a winner, by its name.
        looks: some of the samples, and where one method looks in them; None if nobody asked.
    """

    zero_shot: TestOutcome
    methods: Mapping[str, TestOutcome]
    looks: Looks | None = None


@torch.no_grad()
def run_tests(
    sweep: Path,
    winners: Sequence[Winner],
    samples: Sequence[str],
    labels: Sequence[int],
    device: torch.device,
    rows_at_once: int,
    columns: Sequence[int] | None = None,
    wanted: Mapping[str, Wanted] | None = None,
) -> dict[str, TaskTest]:
    """Classify the test samples of one data set with each of its tasks' winners.

    Args:
        sweep: the sweep's folder.
        winners: of tasks of one data set, which share its classifier and its store.
        samples: sample digests of the test split.
        labels: class indices of the test split.
        device: where to compute.
        rows_at_once: test samples whose maps are in memory at once.
        columns: which of the tasks' classes the labels count through, for a target that has not
            all of them or has them in another order; None is all, in their own order.
        wanted: of which tasks pictures are wanted, by task id.

    Returns:
        What was found of each task, by task id.
    """
    folder = sweep / "tasks" / winners[0].task_id
    facts = TaskFacts.load(folder)
    classifier = load_classifier(folder).to(device)
    original = load_pooling(sweep)
    store = facts.store()
    target = torch.tensor(list(labels))
    classes = len(classifier) if columns is None else len(columns)
    chosen = None if columns is None else torch.tensor(list(columns), device=device)
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(len(winners) + 1)]
    task = TaskData(
        MappedFeatures(torch.empty(0), facts.pool(), original, device),
        torch.empty(0, dtype=torch.int64),
        classifier,
        facts.logit_scale,
        original,
    )
    fitted = [_load(winner, task) for winner in winners]
    for first in range(0, len(samples), rows_at_once):
        rows = slice(first, first + rows_at_once)
        maps = torch.from_numpy(store.read(samples[rows], (0,)))
        features = MappedFeatures(maps, facts.pool(), original, device)
        before = tuned_logits(features.original[:, 0], classifier, facts.logit_scale)
        after = (
            one.logits(features, winner.at) for one, winner in zip(fitted, winners, strict=True)
        )
        for parts, logits in zip(found, (before, *after), strict=True):
            parts.append(_classified(logits, chosen))
    zero_shot, *others = (
        TestOutcome(
            torch.cat([said for said, _ in parts]).numpy(),
            torch.cat([confidence for _, confidence in parts]).numpy(),
            target.numpy(),
            classes,
        )
        for parts in found
    )
    tests: dict[str, dict[str, TestOutcome]] = {}
    looks: dict[str, Looks | None] = {}
    for winner, one, outcome in zip(winners, fitted, others, strict=True):
        tests.setdefault(winner.task_id, {})[winner.method.name] = outcome
        asked = (wanted or {}).get(winner.task_id)
        if asked is not None and asked.method == winner.method.name:
            right = (zero_shot.right, outcome.right)
            shown = chosen_rows(target.numpy(), *right, classes, asked.images)
            if shown:
                maps = torch.from_numpy(store.read([samples[row] for row in shown], (0,)))[:, 0]
                looks[winner.task_id] = look_closely(maps, shown, winner, one, task, facts.pool())
    return {
        task_id: TaskTest(zero_shot, methods, looks.get(task_id))
        for task_id, methods in tests.items()
    }


def _load(winner: Winner, task: TaskData) -> Fitted:
    method = make_method(winner.method.module, winner.method.options)
    state = {} if winner.folder is None else load_head(winner.folder)[0]
    return method.load(state, task)


def _classified(logits: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the class that is said, and its probability, of each sample; both on the CPU."""
    if columns is not None:
        logits = logits[:, columns]
    highest = torch.softmax(logits.float(), -1).amax(-1)
    return logits.argmax(-1).cpu(), highest.cpu()
