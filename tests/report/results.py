"""Results of tasks for the tests of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from safe_ray.report import Protocol, TaskResult, TestResult, ValidationResult
from safe_ray.report.intervals import DRAWS, Interval, crossed_draws, percentile_interval

TITLES = {"safe": "SAFE", "tuned_pooling": "Tuned pooling", "zero_shot": "Zero-shot", "gda": "GDA"}


def on_test(
    zero_shot: float,
    accuracy: float,
    samples: int = 120,
    per_class: Mapping[str, float] | None = None,
    method: str = "safe",
) -> TestResult:
    """Accuracies on a test split, of classes of equal size unless `per_class` says otherwise."""
    both = {"zero_shot": zero_shot, method: accuracy}
    ece = dict.fromkeys(both, 1 / 16)
    return TestResult(dict(both), dict(both if per_class is None else per_class), ece, samples)


def result(
    dataset: str = "foods",
    shots: int = 2,
    seed: int = 1,
    zero_shot: float = 0.5,
    accuracy: float = 0.6,
    targets: dict[str, TestResult] | None = None,
    per_class: Mapping[str, float] | None = None,
    gain_shown: bool = True,
    method: str = "safe",
) -> TaskResult:
    """One method's result in one task; for `zero_shot`, `accuracy` must be that of zero-shot."""
    return TaskResult(
        dataset=dataset,
        shots=shots,
        seed=seed,
        method=method,
        title=TITLES[method],
        backbone="tiny",
        episode_digest="0123456789abcdef",
        best={"lr": 1e-3, "weight_decay": 0.01, "epochs": 40.0, "alpha": 0.35},
        validation=ValidationResult(
            accuracy=0.625,
            mean_per_class=0.625,
            nll=1.5,
            gained=6,
            lost=0 if gain_shown else 5,
            gain_shown=gain_shown,
        ),
        test=on_test(zero_shot, accuracy, per_class=per_class, method=method),
        targets=targets or {},
        protocol=Protocol(
            selection="coop",
            metric="accuracy",
            choose_by="metric",
            convention="coop",
            prompts="single",
            refit=False,
            cautious=False,
            support_samples=20,
            validation_samples=40,
            train_digest="0123456701234567",
            validation_digest="89abcdef89abcdef",
        ),
        head=f"heads/{dataset}-{shots}shot-seed{seed}",
        mlflow_run_id="f" * 32,
    )


def crossed_bootstrap(
    right: NDArray[np.generic], draws: int = DRAWS, seed: int | Sequence[int] = 0
) -> Interval:
    """The mean over seeds and test images, with the interval that a report would give it."""
    values = crossed_draws(right, draws, seed)
    return percentile_interval(float(right.astype(np.float64).mean()), values, len(right))
