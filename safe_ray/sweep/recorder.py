"""Tells MLflow of a sweep while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safe_ray.report.summary import TaskResult
from safe_ray.search.choosing import Choice
from safe_ray.sweep.recording import Recording, result_of
from safe_ray.sweep.running import RunningBanks
from safe_ray.sweep.testing import TaskTest
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob


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
        self._running = RunningBanks(recording)
        self._system: Mapping[str, str] = {}

    def start(self, system: Mapping[str, str]) -> None:
        """Record the system, and the run of every task and method, before anything fans out."""
        self._system = dict(system)
        self._writer.put(self._recording.system(system))
        for record in self._recording.tasks():
            self._writer.put(record)
        self._writer.when_idle(self._running.record)

    def end(self, system: Mapping[str, str]) -> None:
        """Record what the driver's machine was busy with."""
        self._writer.put(self._recording.system(system))

    def begin_bank(self, job: BankJob) -> None:
        """Show a bank while it is being trained."""
        self._running.begin(job)

    def bank(self, job: BankJob) -> None:
        """Record every candidate of a finished bank, for every method that was fitted with it."""
        self._running.end(job)
        self._writer.put(self._recording.bank(job))

    def abandon_banks(self) -> None:
        """End the runs of banks that were handed out and will not be finished."""
        for job in self._running.take():
            self._writer.put(self._recording.abandoned(job))

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
