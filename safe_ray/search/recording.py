"""What the tracker is told of a sweep: a run a task, a child run a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from safe_ray.heads.selection import selection_score
from safe_ray.report.summary import (
    BestCandidate,
    Protocol,
    TaskResult,
    TestResult,
    ValidationResult,
)
from safe_ray.search.testing import TestCounts, Winner
from safe_ray.tracking.mlflow import model_name
from safe_ray.tracking.writer import BackgroundTracker
from safe_ray.training.job import BankJob, BankOutcome, CandidateOutcome, TaskFacts


@dataclass(frozen=True)
class Choice:
    """The candidate and the alpha that a task's search ended with."""

    winner: Winner
    candidate: CandidateOutcome
    samples: int

    @property
    def validation(self) -> tuple[float, float]:
        """Accuracy and negative log-likelihood at the chosen alpha."""
        row, best = self.candidate.row, self.candidate.best
        if row is None or best is None:
            raise ValueError("a failed candidate cannot be chosen")
        return row.accuracy[best], row.nll[best]


def choose(sweep: str, outcomes: Sequence[BankOutcome]) -> Choice | None:
    """Return the best candidate of a task's banks, the first of equal ones; None if all failed."""
    best: tuple[float, Choice] | None = None
    for outcome in outcomes:
        folder = BankJob(sweep, outcome.task_id, outcome.bank, ()).folder
        for candidate in outcome.candidates:
            if candidate.row is None or candidate.best is None or candidate.head is None:
                continue
            winner = Winner(
                outcome.task_id, folder / candidate.head, candidate.row.alphas[candidate.best]
            )
            choice = Choice(winner, candidate, outcome.samples)
            score = selection_score(*choice.validation, outcome.samples)
            if best is None or score > best[0]:
                best = score, choice
    return None if best is None else best[1]


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
        for candidate in outcome.candidates:
            hyper_parameters = candidate.hyper_parameters
            name = f"bank-{outcome.bank:03d}-candidate-{candidate.slot:02d}"
            metrics: dict[str, float] = {}
            curves: dict[str, Sequence[float]] = {"train_loss": candidate.losses}
            alpha = hyper_parameters.alpha
            head = None
            if candidate.row is not None and candidate.best is not None:
                row, best = candidate.row, candidate.best
                alpha = row.alphas[best]
                metrics = {
                    "validation_accuracy": row.accuracy[best],
                    "validation_nll": row.nll[best],
                    "validation_accuracy_zero_shot": row.accuracy[0],
                    "validation_accuracy_tuned_only": row.accuracy[-1],
                    "alpha": alpha,
                    "score": selection_score(row.accuracy[best], row.nll[best], outcome.samples),
                }
                curves["validation_accuracy_over_alpha"] = row.accuracy
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
        accuracy, nll = choice.validation
        self._tracker.finish_task(
            task_id,
            metrics={
                "validation_accuracy": accuracy,
                "validation_nll": nll,
                "test_zero_shot": counts.zero_shot / counts.samples,
                "test_tuned_only": counts.tuned_only / counts.samples,
                "test_safe": counts.safe / counts.samples,
                "test_safe_minus_zero_shot": (counts.safe - counts.zero_shot) / counts.samples,
                **{
                    f"test_{kind}/{name}": value / target.samples
                    for name, target in targets.items()
                    for kind, value in (
                        ("zero_shot", target.zero_shot),
                        ("tuned_only", target.tuned_only),
                        ("safe", target.safe),
                    )
                },
            },
            params={
                **{f"best_{k}": v for k, v in asdict(choice.candidate.hyper_parameters).items()},
                "best_alpha": choice.winner.alpha,
                "test_samples": counts.samples,
            },
            head=choice.winner.folder,
            model_name=model_name(sweep, task_id) if self._register else None,
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
        accuracy, nll = choice.validation
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
            validation=ValidationResult(accuracy, nll),
            test=_accuracies(counts),
            targets={name: _accuracies(target) for name, target in targets.items()},
            protocol=self._protocol(choice.winner.task_id),
            head=head,
            mlflow_run_id=run_id,
        )

    def _protocol(self, task_id: str) -> Protocol:
        facts = self._facts[task_id]
        return Protocol(
            selection=facts.mode,
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


def _accuracies(counts: TestCounts) -> TestResult:
    return TestResult(
        zero_shot=counts.zero_shot / counts.samples,
        tuned_only=counts.tuned_only / counts.samples,
        safe=counts.safe / counts.samples,
        samples=counts.samples,
    )
