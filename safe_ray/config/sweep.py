"""The whole configuration of a sweep."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from safe_ray.config.fields import Folder, Group, Name, one_or_many, without_repeats
from safe_ray.config.settings import (
    BackboneConfig,
    ClusterConfig,
    DataConfig,
    DatasetConfig,
    EvaluationConfig,
    FeaturesConfig,
    MethodConfig,
    SearchConfig,
    TasksConfig,
    TrackingConfig,
    TrainingConfig,
)
from safe_ray.job import RESULTS
from safe_ray.specs import DatasetSpec

EXPERIMENT = "safe_ray"
EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"


class SweepConfig(Group):
    """Everything that one command does."""

    sweep: Name = Field(
        description="Name of the sweep: the same name goes on where it stopped; null makes one up "
        "from the backbone and the time."
    )
    storage: Folder = Field(
        description="Folder for all that is written (environment: SAFE_RAY_STORAGE); null is the "
        f"working directory, and in a submitted Ray job {RESULTS} in the home folder."
    )
    method: Annotated[
        tuple[Name, ...], BeforeValidator(one_or_many), AfterValidator(without_repeats)
    ] = Field(
        min_length=1,
        description="Methods, each a file of conf/method; those that train the same share it.",
    )
    backbone: BackboneConfig
    tasks: TasksConfig
    data: DataConfig
    features: FeaturesConfig
    training: TrainingConfig
    search: SearchConfig
    tracking: TrackingConfig
    cluster: ClusterConfig
    evaluation: EvaluationConfig
    datasets: dict[str, DatasetConfig]
    methods: dict[str, MethodConfig]
    _is_name_made_up: bool = PrivateAttr(default=False)

    @property
    def is_name_made_up(self) -> bool:
        """Whether nobody has named the sweep."""
        return self._is_name_made_up

    def with_name_made_up(self) -> SweepConfig:
        """Return the same configuration, which knows that nobody has named the sweep."""
        copy = self.model_copy()
        copy._is_name_made_up = True
        return copy

    @property
    def outputs(self) -> Path:
        """The folder of this sweep's results."""
        return self.storage / "outputs" / self.sweep

    @property
    def experiment(self) -> str:
        """The name of the MLflow experiment, which the sweeps of a project share."""
        return self.tracking.experiment or os.environ.get(EXPERIMENT_NAME) or EXPERIMENT

    def dataset_specs(self) -> dict[str, DatasetSpec]:
        """Return the data sets of the tasks and the targets by name."""
        names = [*self.tasks.datasets, *self.evaluation.targets]
        return {name: self.datasets[name].spec() for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values that `validate` reads again."""
        return self.model_dump(mode="json", by_alias=True)
