"""What the tracker is told of a sweep: a run a task, a child run a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from safe_ray.heads.metrics import mean_per_class
from safe_ray.heads.selection import shows_gain
from safe_ray.report.summary import (
    Accuracies,
    BestCandidate,
    Protocol,
    TaskResult,
    TestResult,
    ValidationResult,
)
from safe_ray.search.testing import TestCounts, Winner
from safe_ray.specs import Point
from safe_ray.tracking.mlflow import model_name
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.job import BankJob, BankOutcome, CandidateOutcome, TaskFacts


@dataclass(frozen=True)
class Choice:
    """The candidate and the alpha that a task's search ended with."""

    winner: Winner
    candidate: CandidateOutcome

    @property
    def point(self) -> Point:
        """What the validation samples say of the candidate at the chosen alpha."""
        row, best = self.candidate.row, self.candidate.best
        if row is None or best is None:
            raise ValueError("a failed candidate cannot be chosen")
        return row.at(best)

    @property
    def validation(self) -> ValidationResult:
        """What the summary says of the choice."""
        point = self.point
        return ValidationResult(
            accuracy=point.accuracy,
            mean_per_class=point.mean_per_class,
            nll=point.nll,
            gained=point.gained,
            lost=point.lost,
            gain_shown=shows_gain(point.gained, point.lost),
        )


def choose(sweep: str, outcomes: Sequence[BankOutcome]) -> Choice | None:
    """Return the best candidate of a task's banks, the first of equal ones; None if all failed."""
    best: Choice | None = None
    for outcome in outcomes:
        folder = BankJob(sweep, outcome.task_id, outcome.bank, ()).folder
        for candidate in outcome.candidates:
            if candidate.row is None or candidate.best is None or candidate.head is None:
                continue
            winner = Winner(
                outcome.task_id, folder / candidate.head, candidate.row.alphas[candidate.best]
            )
            choice = Choice(winner, candidate)
            if best is None or choice.point.score > best.point.score:
                best = choice
    return best


class Recorder:
    """Turns the sweep's values into calls of the tracker.

    Args:
        tracker: the sweep's, already open.
        facts: the tasks by id.
        register: whether winners are registered as models.
    """

    def __init__(
        self, tracker: BackgroundTracker, facts: Mapping[str, TaskFacts], register: bool
    ) -> None:
        self._tracker = tracker
        self._facts = facts
        self._register = register
        self._trained: dict[str, dict[int, int]] = {task_id: {} for task_id in facts}

    def start(self) -> None:
        """Create the run of every task, on the driver, before anything fans out."""
        for task_id, facts in self._facts.items():
            self._tracker.start_task(
                task_id,
                name=task_id,
                tags=self._tags(task_id),
                params={
                    "dataset": facts.task.dataset,
                    "shots": facts.task.shots,
                    "seed": facts.task.seed,
                    "classes": len(facts.card["class_names"]),
                    **asdict(self._protocol(task_id)),
                    "views": facts.views,
                    "batch_size": facts.batch_size,
                    "precision": facts.precision,
                    "trained": " ".join(facts.trained),
                },
            )

    def bank(self, job: BankJob, outcome: BankOutcome) -> None:
        """Record every candidate of a finished bank."""
        self._trained[outcome.task_id][outcome.bank] = len(outcome.candidates)
        for candidate in outcome.candidates:
            hyper_parameters = candidate.hyper_parameters
            name = f"bank-{outcome.bank:03d}-candidate-{candidate.slot:02d}"
            metrics: dict[str, float] = {}
            curves: dict[str, Sequence[float]] = {"train_loss": candidate.losses}
            alpha = hyper_parameters.alpha
            head = None
            if candidate.row is not None and candidate.best is not None:
                row, point = candidate.row, candidate.row.at(candidate.best)
                alpha = row.alphas[candidate.best]
                metrics = {
                    "validation_accuracy": point.accuracy,
                    "validation_mean_per_class": point.mean_per_class,
                    "validation_nll": point.nll,
                    "validation_gained": point.gained,
                    "validation_lost": point.lost,
                    "validation_accuracy_zero_shot": row.accuracy[0],
                    "validation_accuracy_tuned_only": row.accuracy[-1],
                    "alpha": alpha,
                    "score": point.score,
                }
                curves["validation_accuracy_over_alpha"] = row.accuracy
                curves["validation_mean_per_class_over_alpha"] = row.mean_per_class
                curves["validation_nll_over_alpha"] = row.nll
                head = job.folder / candidate.head if candidate.head else None
            self._tracker.log_candidate(
                job.task_id,
                name,
                name,
                tags={
                    **self._tags(job.task_id),
                    "study": job.task_id,
                    "trial": f"bank-{outcome.bank:03d}",
                },
                params={
                    "lr": hyper_parameters.lr,
                    "weight_decay": hyper_parameters.weight_decay,
                    "epochs": hyper_parameters.epochs,
                    "alpha": alpha,
                    "alpha_suggested": hyper_parameters.alpha,
                },
                metrics=metrics,
                curves=curves,
                head=head,
                failed=candidate.failed,
            )

    def result(
        self, sweep: str, choice: Choice, counts: TestCounts, targets: Mapping[str, TestCounts]
    ) -> None:
        """Record a task's result and register its winner."""
        task_id = choice.winner.task_id
        gain = sum(counts.safe) - sum(counts.zero_shot)
        self._tracker.finish_task(
            task_id,
            metrics={
                # A parameter could not follow when a sweep is given more candidates.
                **{f"best_{k}": v for k, v in asdict(choice.candidate.hyper_parameters).items()},
                "best_alpha": choice.winner.alpha,
                "test_samples": sum(counts.samples),
                **{f"validation_{k}": float(v) for k, v in asdict(choice.validation).items()},
                **_test_metrics(counts),
                "test_safe_minus_zero_shot": gain / sum(counts.samples),
                **{
                    f"{key}/{name}": value
                    for name, target in targets.items()
                    for key, value in _test_metrics(target).items()
                },
            },
            params={},
            head=choice.winner.folder,
            model_name=model_name(sweep, task_id) if self._register else None,
            step=sum(self._trained[task_id].values()),
        )

    def task_result(
        self,
        choice: Choice,
        counts: TestCounts,
        targets: Mapping[str, TestCounts],
        head: str,
        run_id: str | None,
    ) -> TaskResult:
        """Return the task's entry in the summary."""
        facts = self._facts[choice.winner.task_id]
        hyper_parameters = choice.candidate.hyper_parameters
        return TaskResult(
            dataset=facts.task.dataset,
            shots=facts.task.shots,
            seed=facts.task.seed,
            episode_digest=facts.card["episode"]["digest"],
            best=BestCandidate(
                hyper_parameters.lr,
                hyper_parameters.weight_decay,
                hyper_parameters.epochs,
                choice.winner.alpha,
            ),
            validation=choice.validation,
            test=accuracies_of(counts),
            targets={name: accuracies_of(target) for name, target in targets.items()},
            protocol=self._protocol(choice.winner.task_id),
            head=head,
            mlflow_run_id=run_id,
        )

    def _protocol(self, task_id: str) -> Protocol:
        facts = self._facts[task_id]
        return Protocol(
            selection=facts.mode,
            metric=facts.metric,
            choose_by=facts.choose_by,
            convention=facts.card["episode"]["convention"],
            prompts=facts.card["prompts"],
            support_samples=len(facts.support),
            validation_samples=facts.validation_count,
            train_digest=facts.card["episode"]["train_digest"],
            validation_digest=facts.card["episode"]["validation_digest"],
        )

    def _tags(self, task_id: str) -> dict[str, str]:
        facts = self._facts[task_id]
        return {
            "dataset": facts.task.dataset,
            "shots": str(facts.task.shots),
            "seed": str(facts.task.seed),
            "backbone": str(facts.card["backbone"]["name"]),
            "episode_digest": str(facts.card["episode"]["digest"]),
        }


def accuracies_of(counts: TestCounts) -> TestResult:
    """Return the accuracies that follow from the counts."""
    samples = torch.tensor(counts.samples)
    correct = {
        "zero_shot": torch.tensor(counts.zero_shot),
        "tuned_only": torch.tensor(counts.tuned_only),
        "safe": torch.tensor(counts.safe),
    }
    total = int(samples.sum())
    return TestResult(
        **{name: int(right.sum()) / total for name, right in correct.items()},
        samples=total,
        mean_per_class=Accuracies(
            **{name: float(mean_per_class(right, samples)) for name, right in correct.items()}
        ),
    )


def _test_metrics(counts: TestCounts) -> dict[str, float]:
    test = accuracies_of(counts)
    return {
        f"test_{name}{ending}": value
        for ending, accuracies in (
            ("", test.by("accuracy")),
            ("_mean_per_class", test.by("mean_per_class")),
        )
        for name, value in asdict(accuracies).items()
    }
