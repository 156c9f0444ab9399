"""The data sets of a task, as MLflow links them with runs, models and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric

Context = Literal["train", "validation", "test"]

_CONTEXT = "mlflow.data.context"
_LONGEST_DIGEST = 36


@dataclass(frozen=True)
class DataInput:
    """Images that a task was trained, validated or tested with.

    Attributes:
        name: of the data set.
        digest: of the images that were drawn.
        context: what they were used for.
        source: where they are; a password in it has been taken out.
        samples: how many.
        classes: how many the task has.
    """

    name: str
    digest: str
    context: Context
    source: str
    samples: int
    classes: int

    @property
    def short_digest(self) -> str:
        """As much of the digest as MLflow takes."""
        return self.digest[:_LONGEST_DIGEST]


def log_inputs(client: MlflowClient, run_id: str, inputs: Sequence[DataInput]) -> None:
    """Link a run with its data sets; those that it is linked with already stay."""
    if inputs:
        client.log_inputs(run_id, [_as_input(each) for each in inputs])


def of_metric(name: str, inputs: Sequence[DataInput]) -> DataInput | None:
    """Return the data set that a metric was measured on, by how the metric is called."""
    for each in inputs:
        # That of a target, such as `test_safe/sketches`, was measured on another one.
        if name.startswith(f"{each.context}_") and "/" not in name:
            return each
    return None


def _as_input(data: DataInput) -> DatasetInput:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(
        Dataset(
            name=data.name,
            digest=data.short_digest,
            source_type="local",
            source=json.dumps({"uri": data.source}),
            profile=json.dumps({"num_rows": data.samples, "num_classes": data.classes}),
        ),
        [InputTag(_CONTEXT, data.context)],
    )


def linked(
    points: Sequence[Metric], inputs: Sequence[DataInput], model_id: str | None
) -> list[Metric]:
    """Return metrics of a task, those of a data set linked with it and with the winner's model."""
    from mlflow.entities import Metric

    linked = []
    for point in points:
        data = of_metric(point.key, inputs)
        linked.append(
            point
            if data is None
            else Metric(
                point.key,
                point.value,
                point.timestamp,
                point.step,
                model_id=model_id,
                dataset_name=data.name,
                dataset_digest=data.short_digest,
            )
        )
    return linked
