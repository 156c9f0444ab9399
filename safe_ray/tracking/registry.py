"""Models of MLflow's registry, read by whoever uses a head."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.errors import InputError
from safe_ray.tracking.connection import (
    check_reachable,
    displayed,
    failures,
    first_line,
    normalise_uri,
    prepare_environment,
    sqlite_file,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI = "MLFLOW_TRACKING_URI"


def fetch(uri: str) -> Path:
    """Return the folder with the files of a model's version, which MLflow downloads if need be.

    Args:
        uri: `models:/<name>@<alias>` or `models:/<name>/<version>`.

    Raises:
        InputError: `MLFLOW_TRACKING_URI` is not set, nobody answers there, or it has no such model.
    """
    tracking = _tracking(uri)
    from mlflow import MlflowClient, artifacts

    try:
        # MLflow looks a model's URI up where the whole process has set its registry to be. The
        # caller's settings are the caller's, so the files' own place is asked for instead.
        location = _location(MlflowClient(tracking, registry_uri=tracking), uri)
        found = artifacts.download_artifacts(
            artifact_uri=location, tracking_uri=tracking, registry_uri=tracking
        )
        return Path(found)
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


def _location(client: MlflowClient, uri: str) -> str:
    """Return where the files of a model's version, or of a logged model, are."""
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    found = get_model_name_and_version(client, uri)
    if len(found) == 1:
        return str(client.get_logged_model(found[0]).artifact_location)
    location = str(client.get_model_version_download_uri(*found))
    return _location(client, location) if location.startswith("models:/") else location


def _tracking(uri: str) -> str:
    """Return the MLflow that the environment names, once it has answered."""
    named = os.environ.get(TRACKING_URI)
    if not named:
        raise InputError(
            f"{uri} is a model in MLflow, and nothing says which: set {TRACKING_URI} to the server "
            "or the database, such as sqlite:///mlflow.db."
        )
    tracking = normalise_uri(named)
    file = sqlite_file(tracking)
    if file is not None and not file.exists():
        # MLflow would make it, and say that there is no such model in it.
        raise InputError(
            f"{uri} is a model in MLflow, and there is no database {file}: correct {TRACKING_URI}."
        )
    prepare_environment()
    check_reachable(tracking)
    return tracking


def _not_given(uri: str, tracking: str, error: BaseException) -> InputError:
    return InputError(
        f"MLflow at {displayed(tracking)} does not give {uri} "
        f"({without_password(first_line(error), tracking)}): look its name and alias up there."
    )
