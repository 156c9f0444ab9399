"""Results of tasks for the tests of the report."""

from __future__ import annotations

from safe_ray.report import (
    Accuracies,
    BestCandidate,
    Protocol,
    TaskResult,
    TestResult,
    ValidationResult,
)


def on_test(
    zero_shot: float,
    tuned_only: float,
    safe: float,
    samples: int = 120,
    per_class: Accuracies | None = None,
) -> TestResult:
    """Accuracies on a test split, of classes of equal size unless `per_class` says otherwise."""
    equal = Accuracies(zero_shot, tuned_only, safe)
    return TestResult(zero_shot, tuned_only, safe, samples, per_class or equal)


def result(
    dataset: str = "foods",
    shots: int = 2,
    seed: int = 1,
    zero_shot: float = 0.5,
    tuned_only: float = 0.55,
    safe: float = 0.6,
    targets: dict[str, TestResult] | None = None,
    per_class: Accuracies | None = None,
    gain_shown: bool = True,
) -> TaskResult:
    return TaskResult(
        dataset=dataset,
        shots=shots,
        seed=seed,
        episode_digest="0123456789abcdef",
        best=BestCandidate(lr=1e-3, weight_decay=0.01, epochs=40, alpha=0.35),
        validation=ValidationResult(
            accuracy=0.625,
            mean_per_class=0.625,
            nll=1.5,
            gained=6,
            lost=0 if gain_shown else 5,
            gain_shown=gain_shown,
        ),
        test=on_test(zero_shot, tuned_only, safe, per_class=per_class),
        targets=targets or {},
        protocol=Protocol(
            selection="coop",
            metric="accuracy",
            choose_by="metric",
            convention="coop",
            prompts="single",
            support_samples=20,
            validation_samples=40,
            train_digest="0123456701234567",
            validation_digest="89abcdef89abcdef",
        ),
        head=f"heads/{dataset}-{shots}shot-seed{seed}",
        mlflow_run_id="f" * 32,
    )
