"""Experiments: which there are, what MLflow's pages make of them, where their artifacts go.

All sweeps of a project share one, so that one view compares them; each run has its sweep as a tag.
What sweeps ran on stands in a second one, out of the way of whoever looks for results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from safe_ray.errors import InputError
from safe_ray.tracking.connection import displayed, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"
PRIMARY_METRIC = "validation_accuracy"
"""What tasks and their candidates both have, so that one chart takes in both."""

# The page that opens is that of model training; MLflow takes what has no kind for GenAI.
_TRAINING = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": PRIMARY_METRIC,
    "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
}
_NOTE_OF_RESULTS = """\
Few-shot tuning of CLIP's attention pooling. A run is a task with a method; below it, the candidates
that its winner was chosen from on validation images. `test_...` is measured once, on the winner.

| to see | filter |
|---|---|
| one sweep | `tags.sweep = "<name>"` |
| one data set | `tags.dataset = "<name>" AND tags.shots = "4"` |
| results without candidates | ``tags.`safe_ray.kind` = "task"`` |
| the winners' gains | `metrics.test_gain > 0.05` |

Columns to show: `test_accuracy`, `test_gain`, `validation_accuracy`. In charts, parallel
coordinates of `lr`, `epochs` and `validation_accuracy` show what a task prefers, and
`validation_accuracy_over_alpha` how much of the tuned pooling it wants: its step is the place in
the row, 0 for the original model and the last one for the tuned one. Each run's own note says how
to load its winner, and how to go on with its sweep.
"""
_NOTE_OF_SYSTEMS = """\
What the sweeps of the experiment `{name}` ran on: versions, devices, and the load of the driver's
machine.
"""


def systems_of(experiment: str) -> str:
    """Return the name of the experiment that says what the sweeps of another one ran on."""
    return f"{experiment}-systems"


def tags_of_results() -> dict[str, str]:
    """Return the tags of an experiment with results."""
    return {**_TRAINING, NOTE: _NOTE_OF_RESULTS}


def tags_of_systems(experiment: str) -> dict[str, str]:
    """Return the tags of the experiment that says what the sweeps of `experiment` ran on."""
    kind = {key: _TRAINING[key] for key in ("mlflow.experimentKind",)}
    return {**kind, NOTE: _NOTE_OF_SYSTEMS.format(name=experiment)}


def open_experiment(
    client: MlflowClient,
    name: str,
    uri: str,
    artifact_root: str | None,
    tags: Mapping[str, str],
) -> str:
    """Return the id of the experiment, which is created unless it is there.

    Tags that it has already stay as they are: a person may have written a note of their own.

    Raises:
        InputError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            location = _artifact_location(name, uri, artifact_root)
            return client.create_experiment(name, location, dict(tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"The MLflow experiment {name!r} at {displayed(uri)} was deleted: "
            "restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}`, or name another with tracking.experiment=<name>."
        )
    for key, value in tags.items():
        if key not in experiment.tags:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def _artifact_location(experiment: str, uri: str, root: str | None) -> str | None:
    database = sqlite_file(uri)
    if root is None and database is not None:
        root = str(database.parent / "mlartifacts")
    if root is None:
        return None
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", experiment)
    if len(urlsplit(root).scheme) > 1:
        return f"{root.rstrip('/')}/{folder}"
    return (Path(root).expanduser().absolute() / folder).as_uri()
