"""Models of MLflow's registry, read by whoever uses a head."""

from __future__ import annotations

import os
from pathlib import Path

from safe_ray.errors import InputError
from safe_ray.tracking.connection import (
    check_reachable,
    displayed,
    failures,
    first_line,
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
    tracking = _tracking(uri)
    import mlflow

    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(tracking)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except failures() as error:
        raise _not_given(uri, tracking, error) from error


def version_of(uri: str) -> str:
    """Return which version of a model a URI means now; an alias may move.

    Args:
        uri: see `fetch`.

    Raises:
        InputError: see `fetch`.
    """
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if not at:
        return uri
    tracking = _tracking(uri)
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking, registry_uri=tracking)
        return f"{name}/{client.get_model_version_by_alias(name, alias).version}"
    except failures() as error:
        raise _not_given(uri, tracking, error) from error


def _tracking(uri: str) -> str:
    """Return the MLflow that the environment names, once it has answered."""
    named = os.environ.get(TRACKING_URI)
    if not named:
        raise InputError(
            f"{uri} is a model in MLflow, and nothing says which: set {TRACKING_URI} to the server "
            "or the database, such as sqlite:///mlflow.db."
        )
    tracking = normalise_uri(named)
    prepare_environment()
    check_reachable(tracking)
    return tracking


def _not_given(uri: str, tracking: str, error: BaseException) -> InputError:
    return InputError(
        f"MLflow at {displayed(tracking)} does not give {uri} "
        f"({without_password(first_line(error), tracking)}): look its name and alias up there."
    )
