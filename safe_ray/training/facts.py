"""A task as workers need it: plain values in the task's folder, written once by the driver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safe_ray.errors import InputError
from safe_ray.features.parts import MAX_VIEW
from safe_ray.features.store import FeatureStore, StoreKey
from safe_ray.files import as_kind, damaged, read_record, replacing, write_record
from safe_ray.heads.selection import ChooseBy, Rule
from safe_ray.outside import GIB, check_file, is_module_name, is_plain_name
from safe_ray.poolings import Pooling, from_json
from safe_ray.specs import MethodGroup, Metric, Selection, Task
from safe_ray.training.maps import Pin

CLASSIFIER = "classifier.safetensors"
POOLING = "pooling.safetensors"
TASK = "task.json"
LARGEST_TENSORS = 4 * GIB
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class TaskFacts:
    """A task as workers need it: plain values, stored as JSON in the task's folder.

    Attributes:
        task: data set, shots and seed.
        store_root: the folder of the feature stores, seen by all nodes.
        store_key: the fields of the `StoreKey`.
        tokens: tokens of a dense map (L).
        width: channels of a dense map (C).
        pooling: the pooling, as `safe_ray.poolings.to_json` describes it.
        logit_scale: the model's, already exponentiated.
        views: augmented views of each support sample; training draws from these and view 0.
        support: sample digests of the support set, in the episode's order.
        support_labels: class indices of the support set.
        validation: sample digests of the validation samples (empty under the selection `cross`).
        validation_labels: class indices of the validation samples.
        selection: `coop`, `full` and `held_out` validate on the validation samples (a few a class,
            the whole split, or a share of the training images), `cross` on folds of the support
            set.
        folds: folds of the support set under the selection `cross`.
        metric: of the validation samples, that the person asks for.
        choose_by: how a candidate and its knobs are chosen (see `safe_ray.heads.selection.Rule`).
        batch_size: support samples a step.
        warmup: share of the steps with a rising learning rate.
        training_seed: draws the order and the views of the support samples.
        groups: the methods, by what is trained for them.
        card: what `head.json` says of every head of the task.
        pin: where a worker keeps the support maps (see `safe_ray.training.maps`).
        map_budget: bytes of maps that a worker may have in memory when it streams them.
        precision: the pooling's arithmetic in a training step.
        compiled: whether a step on a GPU is compiled.
        cautious: whether a winner whose gain is not shown gives way to zero-shot.
    """

    task: Task
    store_root: str
    store_key: Mapping[str, Any]
    tokens: int
    width: int
    pooling: Mapping[str, Any]
    logit_scale: float
    views: int
    support: tuple[str, ...]
    support_labels: tuple[int, ...]
    validation: tuple[str, ...]
    validation_labels: tuple[int, ...]
    selection: Selection
    folds: int
    metric: Metric
    choose_by: ChooseBy
    batch_size: int
    warmup: float
    training_seed: int
    groups: tuple[MethodGroup, ...]
    card: Mapping[str, Any]
    pin: Pin = "device"
    map_budget: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compiled: bool = False
    cautious: bool = False

    @property
    def validation_count(self) -> int:
        """How many samples the validation accuracy is over."""
        return len(self.support) if self.selection == "cross" else len(self.validation)

    @property
    def maps_in_memory(self) -> int:
        """How many support maps a single worker has in its device's memory at once."""
        if self.pin == "device":
            return len(self.support) * (self.views + 1)
        streamed = self.map_budget // (2 * self.tokens * self.width)
        return streamed if self.pin == "stream" else self.batch_size

    def save(self, folder: Path, classifier: Tensor) -> None:
        """Write the task's folder."""
        with replacing(folder / CLASSIFIER) as temporary:
            save_file({"classifier": classifier.float().contiguous().cpu()}, temporary)
        write_record(folder / TASK, asdict(self))

    @staticmethod
    def load(folder: Path) -> TaskFacts:
        """Read what `save` wrote.

        Raises:
            DamagedFileError: the file does not hold what was written.
            InputError: there is none.
        """
        facts = read_record(folder / TASK)
        if facts is None:
            raise InputError(f"{folder / TASK} is missing: give the same command again.")
        task = as_kind(TaskFacts, facts, folder / TASK)
        if not task.is_sound:
            raise damaged(folder / TASK)
        return task

    @property
    def is_sound(self) -> bool:
        """Whether its parts agree, and its numbers are such as a sweep writes."""
        numbers = (self.tokens, self.width, self.batch_size, len(self.support))
        labels = (*self.support_labels, *self.validation_labels)
        modules = (self.pooling.get("module"), *(m.module for g in self.groups for m in g.methods))
        return (
            is_plain_name(self.task.dataset)
            and is_plain_name(self.task.id)
            and all(0 < number <= _LARGEST for number in numbers)
            and len(self.support) == len(self.support_labels)
            and len(self.validation) == len(self.validation_labels)
            and all(0 <= label <= _LARGEST for label in labels)
            and 0 <= self.views < MAX_VIEW
            and 0 <= self.warmup < 1
            and 0 < self.logit_scale < math.inf
            and 0 <= self.folds <= _LARGEST
            and self.map_budget >= 0
            and self.store_key.keys() == {field.name for field in fields(StoreKey)}
            and all(map(is_module_name, modules))
            and all(is_plain_name(group.name) and group.methods for group in self.groups)
        )

    def group(self, name: str) -> MethodGroup:
        """Return the group of that name.

        Raises:
            InputError: the task has none.
        """
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise InputError(
                f"The task {self.task.id} has no methods called {name!r}: give the "
                "same command again."
            )
        return found

    def pool(self) -> Pooling:
        """Return the pooling that every head of the task is a state of."""
        return from_json(self.pooling)

    def store(self) -> FeatureStore:
        """Open the feature store that holds the task's dense maps."""
        key = StoreKey(**self.store_key)
        return FeatureStore(Path(self.store_root), key, self.tokens, self.width)

    @property
    def rule(self) -> Rule:
        """By what a candidate, and a point of its knobs, is preferred to others."""
        return Rule(self.metric, self.choose_by)


def load_classifier(task_folder: Path) -> Tensor:
    """Read the text embeddings `[classes, D]` of a task.

    Raises:
        DamagedFileError: the file does not hold them.
        InputError: it cannot be read.
    """
    found = _tensors(task_folder / CLASSIFIER).get("classifier")
    if found is None or found.ndim != 2 or found.dtype != torch.float32:
        raise damaged(task_folder / CLASSIFIER)
    return found


def load_pooling(sweep: Path) -> dict[str, Tensor]:
    """Read the original pooling that every head of a sweep starts from.

    Raises:
        DamagedFileError: the file does not hold one.
        InputError: it cannot be read.
    """
    found = _tensors(sweep / POOLING)
    if not found or any(tensor.dtype != torch.float32 for tensor in found.values()):
        raise damaged(sweep / POOLING)
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        check_file(path, LARGEST_TENSORS)
        return load_file(path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give the same command again."
        ) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
