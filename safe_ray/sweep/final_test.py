"""The test of the winners, once all is chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import planned_nodes, run_on_node, works_here
from safe_ray.config import SweepConfig
from safe_ray.data.manifest import Manifest
from safe_ray.data.views import Preprocessing
from safe_ray.devices import device_of
from safe_ray.features.inventory import Inventory
from safe_ray.methods.base import make_method
from safe_ray.progress import Reporter
from safe_ray.report.confusion import Confusion, count_pairs
from safe_ray.report.correct import Correct
from safe_ray.report.looks import LookedAt
from safe_ray.report.summary import TaskResult
from safe_ray.search.choosing import Choice, Winner
from safe_ray.sweep.extraction import extract_tests
from safe_ray.sweep.looking import Wanted, images_a_task
from safe_ray.sweep.pictures import example_image, looked_at
from safe_ray.sweep.recorder import Recorder
from safe_ray.sweep.recording import ZERO_SHOT
from safe_ray.sweep.targets import target_columns
from safe_ray.sweep.testing import TaskTest, run_tests
from safe_ray.sweep.winners import Decision
from safe_ray.training.facts import TaskFacts


@dataclass(frozen=True)
class Tested:
    """What the test came to.

    Attributes:
        results: an entry for the summary of each task and method.
        correct: which test images each has right.
        confusions: which classes each takes for which.
        looks: some test images of each task, and where a method looks in them.
        example: a test image for a person to try a head with.
    """

    results: list[TaskResult] = field(default_factory=list)
    correct: list[Correct] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    looks: list[LookedAt] = field(default_factory=list)
    example: str | None = None


def run_final_test(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    decision: Decision,
    tests: Mapping[str, Inventory],
    columns: Mapping[str, tuple[int, ...]],
    recorder: Recorder,
    reporter: Reporter,
) -> Tested:
    """Test the winners, record what comes of it, and return what the report is made of.

    The test images of a data set pass the trunk and the original pooling once for all of its tasks
    and methods.
    """
    # Groups follow each other in the search; results are in the order that was asked for.
    order = config.method.index
    choices = sorted(decision.choices.values(), key=lambda choice: order(choice.id.method))
    if not choices:
        return Tested()
    extract_tests(
        config,
        backbone,
        list(tests.values()),
        next(iter(facts.values())).store_key["precision"],
        reporter.phase("extracting test features"),
        reporter,
    )
    progress = reporter.phase("testing")
    wanted = _wanted(choices)
    found = Tested()
    for dataset in config.tasks.datasets:
        of_dataset = [c for c in choices if facts[c.id.task_id].task.dataset == dataset]
        if not of_dataset:
            continue
        winners = [choice.winner for choice in of_dataset]
        tested = _run_tests(config, winners, tests[dataset], wanted=wanted)
        shifted = {
            target: _run_tests(config, winners, tests[target], columns[target])
            for target in config.evaluation.targets
            if config.datasets[target].target_of == dataset
        }
        for choice in of_dataset:
            test = tested[choice.id.task_id]
            targets = {target: found[choice.id.task_id] for target, found in shifted.items()}
            head = _relative_head(choice, config.outputs)
            found.results.append(recorder.result(choice, test, targets, head))
        for task_id, test in tested.items():
            _add(found, facts[task_id], test, tests[dataset].table, backbone.preprocessing)
        progress(len(found.results), len(choices), None)
    first = tests[found.results[0].dataset].table
    return replace(found, example=example_image(first, config.outputs))


def _add(
    found: Tested,
    facts: TaskFacts,
    test: TaskTest,
    table: pa.Table,
    preprocessing: Preprocessing,
) -> None:
    """Add what the report is made of, besides the results."""
    task, names = facts.task, tuple(facts.card["class_names"])
    place = (task.dataset, task.shots, task.seed)
    for name, outcome in {ZERO_SHOT: test.zero_shot, **test.methods}.items():
        pairs = count_pairs(outcome.labels, outcome.said, outcome.classes)
        found.correct.append(Correct(*place, name, outcome.right))
        found.confusions.append(Confusion(*place, name, names, *pairs))
    if test.looks is not None:
        found.looks.extend(looked_at(test.looks, task, table, names, preprocessing))


def _wanted(choices: Sequence[Choice]) -> dict[str, Wanted]:
    """Return which method of each task has pictures: the best that tunes a pooling, if one does."""
    of_task: dict[str, list[Choice]] = {}
    for choice in choices:
        of_task.setdefault(choice.id.task_id, []).append(choice)
    images = images_a_task(len(of_task))

    def worth(choice: Choice) -> tuple[bool, float]:
        spec = choice.winner.method
        tunes = make_method(spec.module, spec.options).recipe is not None
        return tunes, choice.fit.point.score

    return {
        task_id: Wanted(max(several, key=worth).winner.method.name, images)
        for task_id, several in of_task.items()
    }


def _relative_head(choice: Choice, sweep: Path) -> str | None:
    folder = choice.winner.folder
    return None if folder is None else Path(os.path.relpath(folder, sweep)).as_posix()


def columns_of_targets(
    config: SweepConfig, manifests: Mapping[str, Manifest]
) -> dict[str, tuple[int, ...]]:
    """Return for each target which of its source's classes its own are."""
    columns = {}
    for target in config.evaluation.targets:
        source = config.datasets[target].target_of
        assert source is not None
        columns[target] = target_columns(manifests[source], manifests[target])
    return columns


def _run_tests(
    config: SweepConfig,
    winners: Sequence[Winner],
    inventory: Inventory,
    columns: Sequence[int] | None = None,
    wanted: Mapping[str, Wanted] | None = None,
) -> dict[str, TaskTest]:
    """Test on a GPU of the cluster if it has one, else here if there are CPUs."""
    labels = inventory.table.column("label").to_pylist()
    gpus = int(any(node.gpus >= 1 for node in planned_nodes()))
    arguments: tuple[Any, ...] = (
        config.outputs,
        list(winners),
        inventory.samples,
        labels,
        device_of(gpus),
        config.evaluation.batch_size,
        columns,
        wanted,
    )
    if gpus or not works_here():
        return run_on_node(run_tests, *arguments, gpus=gpus)
    return run_tests(*arguments)
