"""One sweep from beginning to end: what `python -m safe_ray.tune` does.

    load and connect -> take the name -> features -> search -> test report

What can be checked without that has been checked before (`safe_ray.search.begin`).

The sweep's folder holds all of its state, and every step finds what an earlier run of the same
sweep has left there: so a driver may be killed at any point and started again.

    config.json            what the winners depend on, which a later run must share
    plan.json              what was decided by the first run's machines: the trunk's arithmetic, and
                           the size of a bank
    pooling.safetensors    the original pooling
    tasks/, banks/         see `safe_ray.training.job`
    optuna-journal.log     see `safe_ray.search.journal`
    summary.json, results.parquet, results.md
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import (
    ClusterResources,
    TrialPlan,
    label_selector,
    plan_trials,
    working_nodes,
)
from safe_ray.config import SweepConfig
from safe_ray.data.manifest import Manifest
from safe_ray.devices import device_of
from safe_ray.errors import DamagedFileError
from safe_ray.features.extract import Precision, resolve_precision
from safe_ray.features.inventory import Inventory
from safe_ray.files import read_record, write_record
from safe_ray.job import is_submitted
from safe_ray.progress import Reporter
from safe_ray.report.summary import TaskResult
from safe_ray.report.tables import print_table, write_report
from safe_ray.search import preparation
from safe_ray.search.begin import Admitted
from safe_ray.search.claim import Claim
from safe_ray.search.closing import closing_lines
from safe_ray.search.journal import Journal
from safe_ray.search.precision import check_precisions, precision_of_first_task
from safe_ray.search.recording import Recorder
from safe_ray.search.searcher import BankSearcher, SearchOptions, size_of_first_bank
from safe_ray.search.sizing import BankFootprint, automatic_bank_size
from safe_ray.search.targets import target_columns
from safe_ray.search.testing import TestCounts, Winner, count_correct
from safe_ray.search.tuning import run_trials
from safe_ray.search.winners import Decision, decide, discard_damaged, remedied
from safe_ray.tracking.system import system_facts
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.job import BankJob, BankOutcome, TaskFacts

PLAN = "plan.json"

_Decision = TypeVar("_Decision", bound=int | str)


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep has left.

    Attributes:
        folder: the sweep's folder.
        results: one entry a task.
        files: summary, table and text.
        missing: why each task without a result has none, by task id.
        tracking_uri: where the runs are.
    """

    folder: Path
    results: tuple[TaskResult, ...]
    files: tuple[Path, ...]
    missing: Mapping[str, str]
    tracking_uri: str


def run_admitted(
    claim: Claim,
    admitted: Admitted,
    backbone: Backbone,
    resources: ClusterResources,
    writer: BackgroundTracker,
    reporter: Reporter,
) -> SweepSummary:
    """Run a sweep whose images are checked, or go on with it, and print its table.

    A task that cannot be brought to a result does not keep the others from theirs.

    Args:
        claim: on the sweep's folder; its name is taken here.
        admitted: data sets and images.
        backbone: with its weights.
        resources: of the cluster that has been joined.
        writer: writes to MLflow, open.
        reporter: where to say how far it is.

    Raises:
        InputError: something that the person who asked for it can mend. Nothing that was computed
            before is lost.
    """
    config, images = claim.config, admitted.images
    plan = plan_trials(
        resources,
        config.training.workers,
        config.training.cpus_per_worker,
        config.training.gpus_per_worker,
        config.search.concurrent_trials,
    )
    precision = _precision(claim)
    check_precisions(config, precision, plan.gpus_per_worker)
    if claim.resumed:
        preparation.check_unchanged(config, images.tasks)
    claim.take()
    _decided(config, "precision", lambda: precision)
    writer.log_system(system_facts(_devices(resources)))

    # Nobody who chooses has a test split to look at, from here until all is chosen.
    columns = _columns(config, admitted.manifests)
    manifests = {name: manifest.without_test() for name, manifest in admitted.manifests.items()}
    preparation.extract_support(
        config,
        backbone,
        images.tasks,
        precision,
        reporter.phase("extracting features"),
        reporter,
    )
    facts = preparation.write_tasks(config, backbone, manifests, images.tasks, precision, plan)
    recorder = Recorder(writer, facts, config.tracking.register_winners)
    recorder.start()
    decision = _decide(claim, facts, backbone, plan, recorder, reporter)
    results = _test(
        config, facts, backbone, decision, images.tests, columns, recorder, writer, reporter
    )
    # MLflow may be slow to take what is queued, or lost: the report does not wait for it.
    files: Sequence[Path] = ()
    if results:
        print_table(results)
        files = write_report(results, config.outputs, sorted(decision.missing))
    return SweepSummary(
        config.outputs, tuple(results), tuple(files), decision.missing, writer.tracker.uri
    )


def _decide(
    claim: Claim,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    plan: TrialPlan,
    recorder: Recorder,
    reporter: Reporter,
) -> Decision:
    """Search, and choose winners whose files are whole: a damaged one's bank is trained again."""
    sweep = str(claim.config.outputs)
    searcher = _search(claim, facts, backbone, plan, recorder, reporter)
    decision = decide(sweep, searcher)
    damaged = discard_damaged(decision)
    if damaged:
        for task_id, reason in damaged.items():
            reporter.say(f"{task_id}: {reason}; the winner's bank is trained again.")
        searcher = _search(claim, facts, backbone, plan, recorder, reporter)
        decision = decide(sweep, searcher)
        decision = decision.without(discard_damaged(decision))
    for task_id, failures in searcher.given_up.items():
        if task_id in decision.choices:
            reporter.say(
                f"{task_id}: {len(failures)} of its banks could not be trained "
                f"({remedied(next(iter(failures.values())))})."
            )
    return decision


def _search(
    claim: Claim,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    plan: TrialPlan,
    recorder: Recorder,
    reporter: Reporter,
) -> BankSearcher:
    config = claim.config
    folder, search = config.outputs, config.search
    space = preparation.search_space(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = Journal(folder, reporter.say)
    total = search.candidates * len(facts)
    progress = reporter.phase("searching")
    began = time.monotonic()
    done = found = 0
    failed: Counter[str] = Counter()

    def on_bank(job: BankJob, outcome: BankOutcome) -> None:
        nonlocal done
        failed[outcome.task_id] += sum(candidate.failed for candidate in outcome.candidates)
        recorder.bank(job, outcome)
        journal.record(space, outcome, search.row_points)
        done += len(outcome.candidates)

    def show(unfinished: float) -> None:
        trained = done - found + unfinished
        rest = total - done - unfinished
        # Before a whole candidate is trained, the start of the processes would be extrapolated.
        left = (time.monotonic() - began) / trained * rest if trained >= 1 else None
        progress(int(done + unfinished), total, left)

    searcher = BankSearcher(
        folder,
        [task.task for task in facts.values()],
        space,
        SearchOptions(
            candidates=search.candidates,
            bank=_bank_size(config, facts, backbone, plan),
            banks_in_flight=search.banks_in_flight,
            row_points=search.row_points,
            seed=search.seed,
            checkpoint_seconds=config.training.checkpoint_seconds,
            before=claim.beginning.candidates[:-1],
        ),
        on_bank,
        show,
        reporter.say,
    )
    found = done
    progress(done, total, None)
    training = config.training
    run_trials(searcher, plan, training.workers, training.max_failures, folder, say=reporter.say)
    if not searcher.complete and searcher.stopped is None:
        # Somebody ended Tune's run with a signal that Tune takes itself.
        raise KeyboardInterrupt
    for task_id in facts:
        if failed[task_id]:
            reporter.say(f"{task_id}: {failed[task_id]} candidates diverged and were left out.")
    return searcher


def _bank_size(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    plan: TrialPlan,
) -> int:
    """Return the size of a bank: as asked for, or as the first run of the sweep decided."""
    search = config.search
    if search.bank != "auto":
        return search.bank
    crossed = any(task.mode == "cross" for task in facts.values())
    folds = search.folds if crossed else 0
    footprint = BankFootprint(
        parameters=sum(tensor.numel() for tensor in backbone.state.values()),
        activation_bytes=backbone.pooling.activation_bytes(
            backbone.state, config.training.batch_size
        ),
        members=1 + folds,
        maps=max(task.maps_in_memory for task in facts.values()),
        map_bytes=2 * backbone.tokens * backbone.width,
    )
    return _decided(
        config,
        "bank",
        lambda: (
            size_of_first_bank(config.outputs)
            or automatic_bank_size(search.candidates, footprint, plan.memory)
        ),
    )


def _precision(claim: Claim) -> Precision:
    """Return the arithmetic of the trunk: as asked for, or as the first run's GPUs decided.

    To ask is not to decide: a run that is refused leaves no decision behind.
    """
    config = claim.config
    wanted = config.features.precision
    if wanted != "auto":
        return wanted
    before = None
    if claim.resumed:
        before = _decisions(config).get("precision") or precision_of_first_task(config.outputs)
    return before or resolve_precision(wanted)


def _decided(config: SweepConfig, name: str, decide_now: Callable[[], _Decision]) -> _Decision:
    """Return what the first run of the sweep decided by its machines, or decide it now."""
    decided = _decisions(config)
    if name not in decided:
        decided[name] = decide_now()
        write_record(config.outputs / PLAN, decided)
    decision: _Decision = decided[name]
    return decision


def _decisions(config: SweepConfig) -> dict[str, Any]:
    """Return what earlier runs of the sweep have decided, by name."""
    try:
        return read_record(config.outputs / PLAN) or {}
    except DamagedFileError:
        return {}


def _test(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    backbone: Backbone,
    decision: Decision,
    tests: Mapping[str, Inventory],
    columns: Mapping[str, tuple[int, ...]],
    recorder: Recorder,
    writer: BackgroundTracker,
    reporter: Reporter,
) -> list[TaskResult]:
    sweep, choices = config.outputs, decision.choices
    if not choices:
        return []
    preparation.extract_tests(
        config,
        backbone,
        list(tests.values()),
        next(iter(facts.values())).store_key["precision"],
        reporter.phase("extracting test features"),
        reporter,
    )
    progress = reporter.phase("testing")
    results: list[TaskResult] = []
    for dataset in config.tasks.datasets:
        winners = [c.winner for t, c in choices.items() if facts[t].task.dataset == dataset]
        if not winners:
            continue
        counts = _count(config, winners, tests[dataset])
        shifted = {
            target: _count(config, winners, tests[target], columns[target])
            for target in config.evaluation.targets
            if config.datasets[target].target_of == dataset
        }
        for task_id, count in counts.items():
            targets = {target: of_task[task_id] for target, of_task in shifted.items()}
            recorder.result(config.sweep, choices[task_id], count, targets)
            head = os.path.relpath(choices[task_id].winner.folder, sweep)
            run_id = writer.run_id(task_id)
            results.append(recorder.task_result(choices[task_id], count, targets, head, run_id))
        progress(len(results), len(choices), None)
    return results


def _columns(config: SweepConfig, manifests: Mapping[str, Manifest]) -> dict[str, tuple[int, ...]]:
    """Return for each target which of its source's classes its own are."""
    columns = {}
    for target in config.evaluation.targets:
        source = config.datasets[target].target_of
        assert source is not None
        columns[target] = target_columns(manifests[source], manifests[target])
    return columns


def _count(
    config: SweepConfig,
    winners: Sequence[Winner],
    inventory: Inventory,
    columns: Sequence[int] | None = None,
) -> dict[str, TestCounts]:
    """Count on a GPU of the cluster if it has one, else here."""
    import ray

    labels = inventory.table.column("label").to_pylist()
    gpus = int(any(node["Resources"].get("GPU", 0) >= 1 for node in working_nodes()))
    arguments: tuple[Any, ...] = (
        config.outputs,
        list(winners),
        inventory.samples,
        labels,
        device_of(gpus),
        config.evaluation.batch_size,
        columns,
    )
    if gpus:
        selector = label_selector()
        remote = ray.remote(num_gpus=gpus, num_cpus=1, label_selector=selector)(count_correct)
        counts: dict[str, TestCounts] = ray.get(remote.remote(*arguments))
        return counts
    return count_correct(*arguments)


def _devices(resources: ClusterResources) -> dict[str, str]:
    return {
        "cluster.nodes": str(len(resources.nodes)),
        "cluster.CPU": f"{resources.cpus:g}",
        "cluster.GPU": f"{resources.gpus:g}",
    }


def print_where(config: SweepConfig, result: SweepSummary, seconds: float) -> None:
    """Print how long this run of a sweep took, and where everything is."""
    print(f"Done in {seconds:.0f} s.")
    node = socket.gethostname() if is_submitted() else None
    lines = closing_lines(result.folder, config.features.store, result.tracking_uri, node)
    print("\n".join(lines))
