"""What the tracker is told of a sweep: a run a task and method, a child run a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safe_ray.report.summary import Protocol, TaskResult, TestResult
from safe_ray.search.choosing import Choice, ResultId
from safe_ray.search.journal import study_name
from safe_ray.specs import MethodGroup, MethodSpec
from safe_ray.sweep.testing import TaskTest
from safe_ray.tracking.mlflow import model_name
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import BankOutcome, CandidateOutcome

ZERO_SHOT = "zero_shot"
"""What results call the original model."""


class Recorder:
    """Turns the sweep's values into calls of the tracker.

    Args:
        tracker: the sweep's, already open.
        facts: the tasks by id.
        register: whether winners are registered as models.
        refit: whether winners are trained again (see `safe_ray.sweep.refitting`).
    """

    def __init__(
        self,
        tracker: BackgroundTracker,
        facts: Mapping[str, TaskFacts],
        register: bool,
        refit: bool = False,
    ) -> None:
        self._tracker = tracker
        self._facts = facts
        self._register = register
        self._refit = refit
        groups = next(iter(facts.values())).groups
        self._groups: dict[str, MethodGroup] = {group.name: group for group in groups}
        self._methods = sum(len(group.methods) for group in groups)
        self._trained: dict[tuple[str, str], dict[int, int]] = {}

    def start(self) -> None:
        """Create the run of every task and method, on the driver, before anything fans out."""
        for task_id, facts in self._facts.items():
            for group in facts.groups:
                for method in group.methods:
                    label = ResultId(task_id, method.name).label(self._methods)
                    self._tracker.start_task(
                        label,
                        name=label,
                        tags=self._tags(task_id, method),
                        params=self._params(task_id, group, method),
                    )

    def bank(self, job: BankJob, outcome: BankOutcome) -> None:
        """Record every candidate of a finished bank, for every method that was fitted with it."""
        group = self._groups[outcome.group]
        trained = self._trained.setdefault((outcome.task_id, outcome.group), {})
        trained[outcome.bank] = len(outcome.candidates)
        for candidate in outcome.candidates:
            for method in group.methods:
                self._candidate(job, candidate, method)

    def _candidate(self, job: BankJob, candidate: CandidateOutcome, method: MethodSpec) -> None:
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
        self._tracker.log_candidate(
            ResultId(job.task_id, method.name).label(self._methods),
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

    def result(
        self, sweep: str, choice: Choice, test: TaskTest, targets: Mapping[str, TaskTest]
    ) -> None:
        """Record the result of a task and method, and register what it keeps."""
        found = result_of(test, choice.id.method)
        label = choice.id.label(self._methods)
        accuracy = found.accuracy
        self._tracker.finish_task(
            label,
            metrics={
                # A parameter could not follow when a sweep is given more candidates.
                **{f"best_{name}": float(value) for name, value in choice.values.items()},
                "test_samples": found.samples,
                **{f"validation_{k}": float(v) for k, v in asdict(choice.validation).items()},
                **_test_metrics(found),
                f"test_{choice.id.method}_minus_zero_shot": accuracy[choice.id.method]
                - accuracy[ZERO_SHOT],
                **{
                    f"{key}/{name}": value
                    for name, target in targets.items()
                    for key, value in _test_metrics(result_of(target, choice.id.method)).items()
                },
            },
            params={},
            head=choice.winner.folder,
            model_name=model_name(sweep, label) if self._register else None,
            step=self._candidates(choice.id),
        )

    def task_result(
        self, choice: Choice, test: TaskTest, targets: Mapping[str, TaskTest], head: str | None
    ) -> TaskResult:
        """Return the entry of a task and method in the summary."""
        facts = self._facts[choice.id.task_id]
        method = choice.winner.method
        return TaskResult(
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
            protocol=self._protocol(choice.id.task_id),
            head=head,
            mlflow_run_id=self._tracker.run_id(choice.id.label(self._methods)),
        )

    def _candidates(self, result: ResultId) -> int:
        """Return how many candidates the winner was chosen from."""
        group = next(
            name
            for name, group in self._groups.items()
            if any(method.name == result.method for method in group.methods)
        )
        return sum(self._trained.get((result.task_id, group), {}).values())

    def _params(self, task_id: str, group: MethodGroup, method: MethodSpec) -> dict[str, Any]:
        facts = self._facts[task_id]
        return {
            "dataset": facts.task.dataset,
            "shots": facts.task.shots,
            "seed": facts.task.seed,
            "method": method.name,
            "classes": len(facts.card["class_names"]),
            **asdict(self._protocol(task_id)),
            "views": facts.views,
            "batch_size": facts.batch_size,
            "precision": facts.precision,
            "trained": " ".join(group.trained),
        }

    def _protocol(self, task_id: str) -> Protocol:
        facts = self._facts[task_id]
        return Protocol(
            selection=facts.selection,
            metric=facts.metric,
            choose_by=facts.choose_by,
            convention=facts.card["episode"]["convention"],
            prompts=facts.card["prompts"],
            refit=self._refit and facts.selection != "cross",
            support_samples=len(facts.support),
            validation_samples=facts.validation_count,
            train_digest=facts.card["episode"]["train_digest"],
            validation_digest=facts.card["episode"]["validation_digest"],
        )

    def _tags(self, task_id: str, method: MethodSpec) -> dict[str, str]:
        facts = self._facts[task_id]
        return {
            "dataset": facts.task.dataset,
            "shots": str(facts.task.shots),
            "seed": str(facts.task.seed),
            "method": method.name,
            "backbone": str(facts.card["backbone"]["name"]),
            "episode_digest": str(facts.card["episode"]["digest"]),
        }


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
