"""What the tracker is told of a sweep: a run a task and method, a child run a candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safe_ray.report.summary import Protocol, TaskResult, TestResult
from safe_ray.search.choosing import ResultId
from safe_ray.search.journal import study_name
from safe_ray.specs import MethodGroup, MethodSpec, Task, shots_text
from safe_ray.sweep.driver_usage import load_usage
from safe_ray.sweep.notes import task_note
from safe_ray.sweep.registering import winner_of
from safe_ray.sweep.testing import TaskTest
from safe_ray.sweep.tracked import Tracked
from safe_ray.tracking.inputs import Context, DataInput
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.source import COMMAND
from safe_ray.tracking.times import Load, Span, milliseconds
from safe_ray.tracking.writer import Record
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import OUTCOME, BankOutcome, CandidateOutcome

ZERO_SHOT = "zero_shot"
"""What results call the original model."""


class Recording:
    """What MLflow is told of a sweep: records, made of the files in the sweep's folder.

    A record reads what it writes when it is its turn. So it is the same whether the sweep has just
    written the files or has ended long ago.

    Args:
        folder: the sweep's folder.
        tracked: what else MLflow is told of it.
        facts: the tasks by id.
    """

    def __init__(self, folder: Path, tracked: Tracked, facts: Mapping[str, TaskFacts]) -> None:
        self._folder = folder
        self._tracked = tracked
        self._facts = facts
        groups = next(iter(facts.values())).groups
        self._groups: dict[str, MethodGroup] = {group.name: group for group in groups}
        self._methods = sum(len(group.methods) for group in groups)

    @property
    def groups(self) -> Mapping[str, MethodGroup]:
        """The groups of methods, by name."""
        return self._groups

    def systems(self) -> Iterator[Record]:
        """Yield a record for each system that the sweep has run on."""
        for facts in self._tracked.systems:
            yield self.system(facts)

    def system(self, facts: Mapping[str, str]) -> Record:
        """Return the record of a system: its facts, and how busy the driver's machine was."""

        def record(tracker: Tracker) -> None:
            samples = load_usage(self._folder, facts)
            tracker.log_system(facts, Load.of(samples) if samples else None)

        return record

    def tasks(self) -> Iterator[Record]:
        """Yield a record a task and method, which creates its run."""
        for task_id, facts in self._facts.items():
            for group in facts.groups:
                for method in group.methods:
                    yield self._task(task_id, group, method)

    def _task(self, task_id: str, group: MethodGroup, method: MethodSpec) -> Record:
        label = self.label(task_id, method.name)

        def record(tracker: Tracker) -> None:
            began: tuple[float, ...] = ()
            if label not in tracker.known_runs():
                # A sweep that begins has no bank yet; one that is recorded again has all of them.
                began = tuple(o.began for o in self._outcomes(task_id, group.name) if o.began)
            tracker.start_task(
                label,
                name=label,
                tags=self._tags(task_id, method),
                params=self._params(task_id, group, method),
                inputs=self._inputs(task_id),
                span=Span(began=milliseconds(min(began, default=0.0))),
            )

        return record

    def banks(self) -> Iterator[Record]:
        """Yield a record for each bank whose outcome is in the sweep's folder."""
        for task_id in self._facts:
            for group in self._groups:
                for number in self._finished(task_id, group):
                    yield self.bank(BankJob(str(self._folder), task_id, group, number, ()))

    def bank(self, job: BankJob) -> Record:
        """Return the record of every candidate of a finished bank, for every method of it."""
        where = BankJob(job.sweep, job.task_id, job.group, job.bank, ())

        def record(tracker: Tracker) -> None:
            outcome = BankOutcome.load(where.folder)
            # One whose files were damaged is gone until it has been trained again.
            for candidate in () if outcome is None else outcome.candidates:
                for method in self._groups[where.group].methods:
                    assert outcome is not None
                    self._candidate(tracker, where, outcome, candidate, method)

        return record

    def abandoned(self, job: BankJob) -> Record:
        """Return the record of a bank that was given up."""

        def record(tracker: Tracker) -> None:
            for slot in range(len(job.candidates)):
                for method in self._groups[job.group].methods:
                    label = self.label(job.task_id, method.name)
                    tracker.abandon_candidate(label, candidate_name(job, slot))

        return record

    def _candidate(
        self,
        tracker: Tracker,
        job: BankJob,
        outcome: BankOutcome,
        candidate: CandidateOutcome,
        method: MethodSpec,
    ) -> None:
        name = candidate_name(job, candidate.slot)
        fit = candidate.fits.get(method.name)
        metrics: dict[str, float] = {}
        curves: dict[str, Sequence[float]] = {}
        if candidate.losses:
            curves["train_loss"] = candidate.losses
        head = None
        if fit is not None:
            point = fit.point
            samples = self._facts[job.task_id].validation_count
            metrics = {
                "validation_accuracy": point.accuracy,
                "validation_mean_per_class": point.mean_per_class,
                "validation_nll": point.nll,
                "validation_gained": point.gained,
                "validation_lost": point.lost,
                "validation_accuracy_zero_shot": point.accuracy
                - (point.gained - point.lost) / samples,
                **fit.at,
                "score": point.score,
            }
            for knob, row in fit.rows.items():
                curves[f"validation_accuracy_over_{knob}"] = row.accuracy
                curves[f"validation_mean_per_class_over_{knob}"] = row.mean_per_class
                curves[f"validation_nll_over_{knob}"] = row.nll
            head = job.folder / fit.head if fit.head else None
        load = Load.of(outcome.usage)
        tracker.log_candidate(
            self.label(job.task_id, method.name),
            name,
            name,
            tags=self.candidate_tags(job, method),
            params={**candidate.values, **(fit.at if fit is not None else {})},
            metrics=metrics,
            curves={**curves, **load.curves},
            head=head,
            failed=fit is None,
            span=Span(milliseconds(outcome.began), milliseconds(outcome.ended)),
            times={"train_loss": [round(1000 * time) for time in outcome.epochs], **load.times},
        )

    def result(self, result: TaskResult) -> Record:
        """Return the record of an entry of the summary, which registers what its winner keeps."""
        method, test = result.method, result.test
        task_id = Task(result.dataset, result.shots, result.seed).id
        label = self.label(task_id, method)
        tracked = self._tracked
        winner = None
        if tracked.register:
            packed = tracked.models != "none"
            facts = self._facts[task_id]
            winner = winner_of(result, facts, self._folder, tracked.sweep, packed)
        metrics = {
            # A parameter could not follow when a sweep is given more candidates.
            **{f"best_{name}": float(value) for name, value in result.best.items()},
            "test_samples": float(test.samples),
            **{f"validation_{k}": float(v) for k, v in asdict(result.validation).items()},
            **_test_metrics(test),
            # By one name for all methods, so that they stand in one column.
            "test_accuracy": test.accuracy[method],
            "test_mean_per_class": test.mean_per_class[method],
            "test_ece": test.ece[method],
            "test_gain": test.accuracy[method] - test.accuracy[ZERO_SHOT],
            f"test_{method}_minus_zero_shot": test.accuracy[method] - test.accuracy[ZERO_SHOT],
            **{
                f"{key}/{name}": value
                for name, target in result.targets.items()
                for key, value in _test_metrics(target).items()
            },
        }

        def record(tracker: Tracker) -> None:
            outcomes = list(self._outcomes(task_id, self._group_of(method)))
            ended = max((outcome.ended for outcome in outcomes), default=0.0)
            tracker.finish_task(
                label,
                metrics=metrics,
                params={},
                head=None if result.head is None else self._folder / result.head,
                winner=winner,
                step=sum(len(outcome.candidates) for outcome in outcomes),
                span=Span(ended=milliseconds(ended)),
                inputs=self._inputs(task_id, test.samples),
                note=lambda experiment_id, version: task_note(
                    result,
                    tracked.sweep,
                    tracked.origin.get(COMMAND, ""),
                    experiment_id,
                    None if winner is None else winner.name,
                    version,
                ),
            )

        return record

    def label(self, task_id: str, method: str) -> str:
        """Return what the run of a task and method is called."""
        return ResultId(task_id, method).label(self._methods)

    def protocol(self, task_id: str) -> Protocol:
        """Return how a task was posed."""
        facts = self._facts[task_id]
        return Protocol(
            selection=facts.selection,
            metric=facts.metric,
            choose_by=facts.choose_by,
            convention=facts.card["episode"]["convention"],
            prompts=facts.card["prompts"],
            refit=self._tracked.refit and facts.selection != "cross",
            cautious=facts.cautious,
            support_samples=len(facts.support),
            validation_samples=facts.validation_count,
            train_digest=facts.card["episode"]["train_digest"],
            validation_digest=facts.card["episode"]["validation_digest"],
        )

    def _finished(self, task_id: str, group: str) -> list[int]:
        """Return the numbers of a study's finished banks."""
        folder = self._folder / "banks" / task_id / group
        return sorted(
            int(file.parent.name.removeprefix("bank-"))
            for file in folder.glob(f"bank-[0-9]*/{OUTCOME}")
        )

    def _group_of(self, method: str) -> str:
        return next(
            name
            for name, group in self._groups.items()
            if any(each.name == method for each in group.methods)
        )

    def _outcomes(self, task_id: str, group: str) -> Iterator[BankOutcome]:
        """Yield the finished banks of a study."""
        for number in self._finished(task_id, group):
            outcome = BankOutcome.load(
                BankJob(str(self._folder), task_id, group, number, ()).folder
            )
            if outcome is not None:
                yield outcome

    def _inputs(self, task_id: str, tested: int | None = None) -> list[DataInput]:
        """Return the data sets of a task; the test images once it has been tested on them."""
        facts = self._facts[task_id]
        dataset, episode = facts.task.dataset, facts.card["episode"]
        told = self._tracked.data.get(dataset, {})
        uses: list[tuple[Context, str, int]] = [
            ("train", episode["train_digest"], len(facts.support)),
            ("validation", episode["validation_digest"], len(facts.validation)),
            ("test", told.get("test", ""), tested or 0),
        ]
        classes = len(facts.card["class_names"])
        return [
            DataInput(dataset, digest, use, told.get("source", dataset), samples, classes)
            for use, digest, samples in uses
            if digest and samples
        ]

    def candidate_tags(self, job: BankJob, method: MethodSpec) -> dict[str, str]:
        """Return the tags of a candidate's run."""
        return {
            **self._tags(job.task_id, method),
            "study": study_name(job.task_id, job.group),
            "bank": f"{job.bank:03d}",
        }

    def _params(self, task_id: str, group: MethodGroup, method: MethodSpec) -> dict[str, Any]:
        facts = self._facts[task_id]
        return {
            "dataset": facts.task.dataset,
            "shots": shots_text(facts.task.shots),
            "seed": facts.task.seed,
            "method": method.name,
            "classes": len(facts.card["class_names"]),
            **asdict(self.protocol(task_id)),
            "views": facts.views,
            "batch_size": facts.batch_size,
            "precision": facts.precision,
            "trained": " ".join(group.trained),
        }

    def _tags(self, task_id: str, method: MethodSpec) -> dict[str, str]:
        facts = self._facts[task_id]
        return {
            "sweep": self._tracked.sweep,
            "dataset": facts.task.dataset,
            "shots": shots_text(facts.task.shots),
            "seed": str(facts.task.seed),
            "method": method.name,
            "backbone": str(facts.card["backbone"]["name"]),
            "episode_digest": str(facts.card["episode"]["digest"]),
        }


def candidate_name(job: BankJob, slot: int) -> str:
    """Return what the run of a bank's candidate is called."""
    return f"bank-{job.bank:03d}-candidate-{slot:02d}"


def identified(
    results: Sequence[TaskResult], methods: int, run_id: Callable[[str], str | None]
) -> tuple[TaskResult, ...]:
    """Return entries of the summary with the ids of their runs, as far as MLflow has given them.

    Args:
        results: the entries.
        methods: how many methods the sweep has.
        run_id: returns the id of a run by its name, or None.
    """
    return tuple(
        replace(
            result,
            mlflow_run_id=run_id(
                ResultId(Task(result.dataset, result.shots, result.seed).id, result.method).label(
                    methods
                )
            )
            or result.mlflow_run_id,
        )
        for result in results
    )


def result_of(test: TaskTest, method: str) -> TestResult:
    """Return what the summary says of a method's test, beside zero-shot."""
    tested = {ZERO_SHOT: test.zero_shot, method: test.methods[method]}
    return TestResult(
        accuracy={name: outcome.accuracy for name, outcome in tested.items()},
        mean_per_class={name: outcome.mean_per_class for name, outcome in tested.items()},
        ece={name: outcome.calibration_error for name, outcome in tested.items()},
        samples=len(test.zero_shot.right),
    )


def _test_metrics(test: TestResult) -> dict[str, float]:
    columns = {"": test.accuracy, "_mean_per_class": test.mean_per_class, "_ece": test.ece}
    return {
        f"test_{name}{ending}": value
        for ending, values in columns.items()
        for name, value in values.items()
    }
