"""The experiment of a sweep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from safe_ray.errors import InputError
from safe_ray.tracking.connection import displayed, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_experiment(client: MlflowClient, name: str, uri: str, artifact_root: str | None) -> str:
    """Return the id of the experiment, which is created unless it is there.

    Raises:
        InputError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, _artifact_location(name, uri, artifact_root))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise InputError(
            f"The MLflow experiment {name!r} at {displayed(uri)} was deleted: "
            "restore it with `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}`, or give the sweep another name."
        )
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
