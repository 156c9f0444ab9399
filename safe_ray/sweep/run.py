"""One sweep from beginning to end: what `python -m safe_ray.tune` does.

    load and connect -> take the name -> features -> search -> test report

What can be checked without that has been checked before (`safe_ray.sweep.begin`).

The sweep's folder holds all of its state, and every step finds what an earlier run of the same
sweep has left there: so a driver may be killed at any point and started again.

    config.json            what the winners depend on, which a later run must share
    tracking.json          what else MLflow is told (see `safe_ray.sweep.tracked`)
    plan.json              what was decided by the first run's machines: the trunk's arithmetic, and
                           the size of a bank
    pooling.safetensors    the original pooling
    cautious/              heads that gave way to zero-shot (see `safe_ray.sweep.caution`)
    tasks/, banks/         see `safe_ray.training.job`
    optuna-journal.log     see `safe_ray.search.journal`
    summary.json, results.parquet, results.md
    usage.json             how busy the driver's machine was
    correct.parquet        which test images each result has right
    confusion.parquet      which classes each result takes for which
    looks.parquet          some test images, and where the poolings look in them
    report.html            all of it as a page
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safe_ray.backbones.openclip import Backbone
from safe_ray.cluster import (
    ClusterResources,
    plan_trials,
    release_nodes,
)
from safe_ray.config import SweepConfig
from safe_ray.features.extract import Precision, resolve_precision
from safe_ray.job import is_submitted
from safe_ray.progress import Reporter
from safe_ray.report.confusion import write_confusions
from safe_ray.report.correct import write_correct
from safe_ray.report.looks import write_looks
from safe_ray.report.parquet import PARQUET_FILE, write_parquet
from safe_ray.report.summary import TaskResult, task_id, write_summary
from safe_ray.report.tables import print_table, write_report
from safe_ray.search.groups import described, groups_of
from safe_ray.sweep.begin import Admitted
from safe_ray.sweep.caution import fall_back
from safe_ray.sweep.claim import Claim
from safe_ray.sweep.closing import closing_lines, pages_of, predict_command
from safe_ray.sweep.driver_usage import measuring
from safe_ray.sweep.extraction import check_store, extract_support
from safe_ray.sweep.final_test import columns_of_targets, run_final_test
from safe_ray.sweep.images import check_unchanged
from safe_ray.sweep.page import try_page
from safe_ray.sweep.plan import decided, decisions
from safe_ray.sweep.precision import check_precisions, precision_of_first_task
from safe_ray.sweep.recorder import Recorder
from safe_ray.sweep.recording import Recording, identified
from safe_ray.sweep.refitting import refit_winners
from safe_ray.sweep.searching import search_winners
from safe_ray.sweep.tasks import write_tasks
from safe_ray.sweep.tracked import Tracked
from safe_ray.tracking.system import system_facts
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.facts import TaskFacts


@dataclass(frozen=True)
class SweepSummary:
    """What a sweep has left.

    Attributes:
        folder: the sweep's folder.
        results: one entry a task and method.
        files: summary, table and text.
        missing: why each without a result has none, by its name.
        tracking_uri: where the runs are.
        unrecorded: how many records MLflow has not taken.
        experiment_id: MLflow's; empty if it has not answered.
        page: the report as a page, if it could be made.
        example: a test image for a person to try a head with.
    """

    folder: Path
    results: tuple[TaskResult, ...]
    files: tuple[Path, ...]
    missing: Mapping[str, str]
    tracking_uri: str
    unrecorded: int = 0
    experiment_id: str = ""
    page: Path | None = None
    example: str | None = None


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
    groups = groups_of(config)
    names = tuple(backbone.state)
    methods = [described(group, backbone.pooling, names) for group in groups]
    precision = _precision(claim)
    check_precisions(config, precision, plan.gpus_per_worker)
    release_nodes()
    if claim.resumed:
        check_unchanged(config, images.tasks)
    check_store(config, backbone, images, precision)
    claim.take()
    decided(config, "precision", lambda: precision)

    # Nobody who chooses has a test split to look at, from here until all is chosen.
    columns = columns_of_targets(config, admitted.manifests)
    manifests = {name: manifest.without_test() for name, manifest in admitted.manifests.items()}
    extract_support(
        config,
        backbone,
        images.tasks,
        precision,
        reporter.phase("extracting features"),
        reporter,
    )
    facts = write_tasks(config, backbone, manifests, images.tasks, precision, plan, methods)
    system = system_facts(_devices(resources))
    recorder = _recorder(config, facts, system, admitted, writer)
    with measuring(config.outputs, system, config.tracking.system):
        decision = search_winners(claim, facts, groups, backbone, plan, recorder, reporter)
        recorder.abandon_banks()
        if config.search.cautious:
            decision = fall_back(decision, config.outputs, reporter.say)
        if config.search.refit:
            decision = refit_winners(config, facts, decision, plan, reporter)
        tested = run_final_test(
            config, facts, backbone, decision, images.tests, columns, recorder, reporter
        )
    recorder.end(system)
    missing = {
        result.label(len(config.method)): reason for result, reason in decision.missing.items()
    }
    # MLflow may be slow to take what is queued, or lost: the report does not wait for it.
    files: Sequence[Path] = ()
    page = None
    results = list(identified(tested.results, len(config.method), writer.run_id))
    if results:
        print_table(results, correct=tested.correct)
        sys.stdout.flush()
        files = [
            *write_report(results, config.outputs, sorted(missing), tested.correct),
            write_correct(tested.correct, config.outputs),
            write_confusions(tested.confusions, config.outputs),
            write_looks(tested.looks, config.outputs),
        ]
        page = try_page(config.outputs, sorted(missing))
        if page is not None:
            files = [*files, page]
            recorder.page(page)
    return SweepSummary(
        config.outputs,
        tuple(results),
        tuple(files),
        missing,
        writer.tracker.uri,
        page=page,
        example=tested.example,
    )


def _recorder(
    config: SweepConfig,
    facts: Mapping[str, TaskFacts],
    system: Mapping[str, str],
    admitted: Admitted,
    writer: BackgroundTracker,
) -> Recorder:
    """Write down what else MLflow is told, and begin to tell it."""
    tracked = Tracked.of(
        config.sweep,
        writer.tracker.uri,
        config.experiment,
        config.tracking,
        config.search.refit,
        tuple(facts),
        system,
        writer.tracker.source,
        {
            name: {"source": config.datasets[name].path, "test": digest}
            for name, digest in admitted.images.test_digests.items()
        },
    )
    tracked.save(config.outputs)
    recorder = Recorder(writer, Recording(config.outputs, tracked, facts), facts)
    recorder.start(system)
    return recorder


def with_runs(
    config: SweepConfig, summary: SweepSummary, writer: BackgroundTracker
) -> SweepSummary:
    """Return what a sweep has left once MLflow has had its time, with the ids of runs in the files.

    The report is written before MLflow has heard of everything.
    """
    results = identified(summary.results, len(config.method), writer.run_id)
    if results != summary.results:
        write_summary(results, summary.folder)
        write_parquet(results, summary.folder / PARQUET_FILE)
    return replace(
        summary,
        results=results,
        unrecorded=writer.missing,
        experiment_id=writer.tracker.experiment_id,
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
        before = decisions(config).get("precision") or precision_of_first_task(config.outputs)
    return before or resolve_precision(wanted)


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
    lines = closing_lines(
        result.folder,
        config.features.store,
        result.tracking_uri,
        node,
        result.unrecorded,
        pages_of(
            result.tracking_uri,
            result.experiment_id,
            config.sweep,
            result.results,
            config.tracking.register_winners and config.tracking.heads != "none",
        ),
        page=result.page,
        predict=_predict(result),
    )
    print("\n".join(lines))


def _predict(result: SweepSummary) -> str | None:
    """Return the command that classifies an image with a head of the sweep, if it keeps one."""
    with_head = next((entry for entry in result.results if entry.head is not None), None)
    if with_head is None or result.example is None:
        return None
    return predict_command(result.folder / task_id(with_head), result.example)
