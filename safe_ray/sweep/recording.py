"""What the tracker is told of a sweep: a run a task and method, a child run a candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safe_ray.report.summary import Protocol, TaskResult, TestResult
from safe_ray.search.choosing import Choice, ResultId
from safe_ray.search.journal import study_name
from safe_ray.specs import MethodGroup, MethodSpec, Task, shots_text
from safe_ray.sweep.testing import TaskTest
from safe_ray.tracking.mlflow import Tracker, model_name
from safe_ray.tracking.writer import BackgroundTracker, Record
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
        sweep: its name.
        facts: the tasks by id.
        register: whether winners are registered as models.
        refit: whether winners are trained again (see `safe_ray.sweep.refitting`).
    """

    def __init__(
        self,
        folder: Path,
        sweep: str,
        facts: Mapping[str, TaskFacts],
        register: bool,
        refit: bool = False,
    ) -> None:
        self._folder = folder
        self._sweep = sweep
        self._facts = facts
        self._register = register
        self._refit = refit
        groups = next(iter(facts.values())).groups
        self._groups: dict[str, MethodGroup] = {group.name: group for group in groups}
        self._methods = sum(len(group.methods) for group in groups)

    def tasks(self) -> Iterator[Record]:
        """Yield a record a task and method, which creates its run."""
        for task_id, facts in self._facts.items():
            for group in facts.groups:
                for method in group.methods:
                    yield self._task(task_id, group, method)

    def _task(self, task_id: str, group: MethodGroup, method: MethodSpec) -> Record:
        label = self.label(task_id, method.name)

        def record(tracker: Tracker) -> None:
            tracker.start_task(
                label,
                name=label,
                tags=self._tags(task_id, method),
                params=self._params(task_id, group, method),
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
                    self._candidate(tracker, where, candidate, method)

        return record

    def _candidate(
        self, tracker: Tracker, job: BankJob, candidate: CandidateOutcome, method: MethodSpec
    ) -> None:
        name = f"bank-{job.bank:03d}-candidate-{candidate.slot:02d}"
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
        tracker.log_candidate(
            self.label(job.task_id, method.name),
            name,
            name,
            tags={
                **self._tags(job.task_id, method),
                "study": study_name(job.task_id, job.group),
                "bank": f"{job.bank:03d}",
            },
            params={**candidate.values, **(fit.at if fit is not None else {})},
            metrics=metrics,
            curves=curves,
            head=head,
            failed=fit is None,
        )

    def result(self, result: TaskResult) -> Record:
        """Return the record of an entry of the summary, which registers what its winner keeps."""
        method, test = result.method, result.test
        task_id = Task(result.dataset, result.shots, result.seed).id
        label = self.label(task_id, method)
        metrics = {
            # A parameter could not follow when a sweep is given more candidates.
            **{f"best_{name}": float(value) for name, value in result.best.items()},
            "test_samples": float(test.samples),
            **{f"validation_{k}": float(v) for k, v in asdict(result.validation).items()},
            **_test_metrics(test),
            f"test_{method}_minus_zero_shot": test.accuracy[method] - test.accuracy[ZERO_SHOT],
            **{
                f"{key}/{name}": value
                for name, target in result.targets.items()
                for key, value in _test_metrics(target).items()
            },
        }

        def record(tracker: Tracker) -> None:
            tracker.finish_task(
                label,
                metrics=metrics,
                params={},
                head=None if result.head is None else self._folder / result.head,
                model_name=model_name(self._sweep, label) if self._register else None,
                step=self._candidates(task_id, method),
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
            refit=self._refit and facts.selection != "cross",
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

    def _candidates(self, task_id: str, method: str) -> int:
        """Return how many candidates the winner was chosen from."""
        group = next(
            name
            for name, group in self._groups.items()
            if any(each.name == method for each in group.methods)
        )
        jobs = (
            BankJob(str(self._folder), task_id, group, number, ())
            for number in self._finished(task_id, group)
        )
        outcomes = (BankOutcome.load(job.folder) for job in jobs)
        return sum(len(outcome.candidates) for outcome in outcomes if outcome is not None)

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
            "dataset": facts.task.dataset,
            "shots": shots_text(facts.task.shots),
            "seed": str(facts.task.seed),
            "method": method.name,
            "backbone": str(facts.card["backbone"]["name"]),
            "episode_digest": str(facts.card["episode"]["digest"]),
        }


class Recorder:
    """Queues the records of a sweep that runs.

    Args:
        writer: the sweep's, already open.
        recording: makes the records.
        facts: the tasks by id.
    """

    def __init__(
        self, writer: BackgroundTracker, recording: Recording, facts: Mapping[str, TaskFacts]
    ) -> None:
        self._writer = writer
        self._recording = recording
        self._facts = facts
        self._system: Mapping[str, str] = {}

    def start(self, system: Mapping[str, str]) -> None:
        """Record the system, and the run of every task and method, before anything fans out."""
        self._system = dict(system)
        self._writer.put(lambda tracker: tracker.log_system(system))
        for record in self._recording.tasks():
            self._writer.put(record)

    def bank(self, job: BankJob) -> None:
        """Record every candidate of a finished bank, for every method that was fitted with it."""
        self._writer.put(self._recording.bank(job))

    def page(self, file: Path) -> None:
        """Record the report as a page, with what is known of the system that made it."""
        system = self._system
        self._writer.put(lambda tracker: tracker.log_page(system, file))

    def result(
        self, choice: Choice, test: TaskTest, targets: Mapping[str, TaskTest], head: str | None
    ) -> TaskResult:
        """Record the result of a task and method, and return its entry in the summary."""
        facts = self._facts[choice.id.task_id]
        method = choice.winner.method
        result = TaskResult(
            dataset=facts.task.dataset,
            shots=facts.task.shots,
            seed=facts.task.seed,
            method=method.name,
            title=method.title,
            backbone=str(facts.card["backbone"]["name"]),
            episode_digest=facts.card["episode"]["digest"],
            best=choice.values,
            validation=choice.validation,
            test=result_of(test, method.name),
            targets={name: result_of(target, method.name) for name, target in targets.items()},
            protocol=self._recording.protocol(choice.id.task_id),
            head=head,
            mlflow_run_id=None,
        )
        self._writer.put(self._recording.result(result))
        return result


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
