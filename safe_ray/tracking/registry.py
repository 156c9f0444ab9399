"""Models of MLflow's registry, read by whoever uses a head."""

from __future__ import annotations

import os
from pathlib import Path

from safe_ray.errors import InputError
from safe_ray.tracking.connection import (
    check_reachable,
    displayed,
    first_line,
    mlflow_errors,
    normalise_uri,
    prepare_environment,
    without_password,
)

TRACKING_URI = "MLFLOW_TRACKING_URI"


def fetch(uri: str) -> Path:
    """Return the folder with the files of a model's version, which MLflow downloads if need be.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.

    Raises:
        InputError: `MLFLOW_TRACKING_URI` is not set, nobody answers there, or it has no such model.
    """
    named = os.environ.get(TRACKING_URI)
    if not named:
        raise InputError(
            f"{uri} is a model in MLflow, and nothing says which: set {TRACKING_URI} to the server "
            "or the database, such as sqlite:///mlflow.db."
        )
    tracking = normalise_uri(named)
    prepare_environment()
    check_reachable(tracking)
    import mlflow

    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(tracking)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except mlflow_errors() as error:
        raise InputError(
            f"MLflow at {displayed(tracking)} does not give {uri} "
            f"({without_password(first_line(error), tracking)}): look its name and alias up there."
        ) from error
