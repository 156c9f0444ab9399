"""Parameters and metrics of a run, in requests of the size that MLflow takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safe_ray.tracking.runs import Known

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

Curve = Sequence[float] | Mapping[int, float]

_METRICS_A_BATCH, _PARAMS_A_BATCH = 1000, 100


def points_of(
    metrics: Mapping[str, float],
    curves: Mapping[str, Curve],
    timestamp_ms: int,
    step: int = 0,
    times: Mapping[str, Sequence[int]] | None = None,
) -> list[Metric]:
    """Return metrics and curves as MLflow's metrics.

    Args:
        metrics: one number each.
        curves: numbers over steps; a sequence has the steps 0, 1, ..., a mapping names them.
        timestamp_ms: when they were known, in milliseconds since 1970.
        step: of the metrics that have one number.
        times: when each point of a curve was known, for those whose points have times of their own.
    """
    from mlflow.entities import Metric

    points = [Metric(key, float(value), timestamp_ms, step) for key, value in metrics.items()]
    for key, curve in curves.items():
        steps: Iterable[tuple[int, float]] = (
            curve.items() if isinstance(curve, Mapping) else enumerate(curve)
        )
        own = (times or {}).get(key, ())
        for place, (step, value) in enumerate(steps):
            known = own[place] if place < len(own) else timestamp_ms
            points.append(Metric(key, float(value), known, step))
    return points


def log_batches(
    client: MlflowClient, known: Known, params: Mapping[str, Any], points: Sequence[Metric]
) -> None:
    """Write parameters that the run lacks, and metrics, in as few requests as MLflow allows."""
    from mlflow.entities import Param

    # A parameter cannot be overwritten; the first value is the one that the run was made with.
    fresh = [Param(key, str(value)) for key, value in params.items() if key not in known.params]
    # A request holds at most 1000 values in all, 100 of them parameters.
    first = fresh[:_PARAMS_A_BATCH]
    head, tail = (
        points[: _METRICS_A_BATCH - len(first)],
        points[_METRICS_A_BATCH - len(first) :],
    )
    if first or head:
        client.log_batch(known.run_id, metrics=head, params=first)
    for part in _parts(fresh[_PARAMS_A_BATCH:], _PARAMS_A_BATCH):
        client.log_batch(known.run_id, params=part)
    for rest in _parts(tail, _METRICS_A_BATCH):
        client.log_batch(known.run_id, metrics=rest)
    known.params |= {param.key for param in fresh}


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
