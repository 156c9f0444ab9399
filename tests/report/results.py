"""Results of tasks for the tests of the report."""

from __future__ import annotations

from safe_ray.report import BestCandidate, Protocol, TaskResult, TestResult, ValidationResult


def result(
    dataset: str = "foods",
    shots: int = 2,
    seed: int = 1,
    zero_shot: float = 0.5,
    tuned_only: float = 0.55,
    safe: float = 0.6,
    targets: dict[str, TestResult] | None = None,
) -> TaskResult:
    return TaskResult(
        dataset=dataset,
        shots=shots,
        seed=seed,
        episode_digest="0123456789abcdef",
        best=BestCandidate(lr=1e-3, weight_decay=0.01, epochs=40, alpha=0.35),
        validation=ValidationResult(accuracy=0.625, nll=1.5),
        test=TestResult(zero_shot=zero_shot, tuned_only=tuned_only, safe=safe, samples=120),
        targets=targets or {},
        protocol=Protocol(
            selection="coop",
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
