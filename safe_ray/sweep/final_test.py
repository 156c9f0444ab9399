"""The test of the winners, once all is chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import planned_nodes, run_on_node, works_here
from safe_ray.config import SweepConfig
from safe_ray.data.manifest import Manifest
from safe_ray.devices import device_of
from safe_ray.features.inventory import Inventory
from safe_ray.progress import Reporter
from safe_ray.report.correct import Correct
from safe_ray.report.summary import TaskResult
from safe_ray.search.choosing import Choice, Winner
from safe_ray.sweep.extraction import extract_tests
from safe_ray.sweep.recorder import Recorder
from safe_ray.sweep.recording import ZERO_SHOT
from safe_ray.sweep.targets import target_columns
from safe_ray.sweep.testing import TaskTest, run_tests
from safe_ray.sweep.winners import Decision
from safe_ray.training.facts import TaskFacts


def run_final_test(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    decision: Decision,
    tests: Mapping[str, Inventory],
    columns: Mapping[str, tuple[int, ...]],
    recorder: Recorder,
    reporter: Reporter,
) -> tuple[list[TaskResult], list[Correct]]:
    """Test the winners, record what comes of it, and return the entries of the summary.

    The test images of a data set pass the trunk and the original pooling once for all of its tasks
    and methods.

    Returns:
        An entry for the summary of each result, and which test images each has right.
    """
    # Groups follow each other in the search; results are in the order that was asked for.
    order = config.method.index
    choices = sorted(decision.choices.values(), key=lambda choice: order(choice.id.method))
    if not choices:
        return [], []
    extract_tests(
        config,
        backbone,
        list(tests.values()),
        next(iter(facts.values())).store_key["precision"],
        reporter.phase("extracting test features"),
        reporter,
    )
    progress = reporter.phase("testing")
    results: list[TaskResult] = []
    correct: list[Correct] = []
    for dataset in config.tasks.datasets:
        of_dataset = [c for c in choices if facts[c.id.task_id].task.dataset == dataset]
        if not of_dataset:
            continue
        winners = [choice.winner for choice in of_dataset]
        tested = _run_tests(config, winners, tests[dataset])
        shifted = {
            target: _run_tests(config, winners, tests[target], columns[target])
            for target in config.evaluation.targets
            if config.datasets[target].target_of == dataset
        }
        for choice in of_dataset:
            test = tested[choice.id.task_id]
            targets = {target: found[choice.id.task_id] for target, found in shifted.items()}
            head = _relative_head(choice, config.outputs)
            results.append(recorder.result(choice, test, targets, head))
        for task_id, test in tested.items():
            task = facts[task_id].task
            correct += [
                Correct(task.dataset, task.shots, task.seed, name, outcome.right)
                for name, outcome in {ZERO_SHOT: test.zero_shot, **test.methods}.items()
            ]
        progress(len(results), len(choices), None)
    return results, correct


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
    )
    if gpus or not works_here():
        return run_on_node(run_tests, *arguments, gpus=gpus)
    return run_tests(*arguments)
