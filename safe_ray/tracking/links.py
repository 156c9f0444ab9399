"""Pages of MLflow, as addresses that open when they are clicked."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from safe_ray.redaction import redacted

OWN_ADDRESS = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens when nobody tells it otherwise."""

_TRAINING = "workflowType=machine_learning"
"""MLflow opens a page with the menu of agents and prompts, unless its address says otherwise."""


def is_server(uri: str) -> bool:
    """Whether the runs are with a server, which has pages of its own."""
    return uri.startswith(("http://", "https://"))


def base_of(uri: str) -> str:
    """Return the address of MLflow's pages: a server's, without user and password, or our own's."""
    if not is_server(uri):
        return OWN_ADDRESS
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return redacted(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")))


def experiment(experiment_id: str, condition: str = "") -> str:
    """Return the page of an experiment's runs, perhaps filtered."""
    search = f"searchFilter={quote(condition, safe='')}&" if condition else ""
    return f"#/experiments/{quote(experiment_id)}/runs?{search}{_TRAINING}"


def run(experiment_id: str, run_id: str) -> str:
    """Return the page of a run."""
    return f"#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}?{_TRAINING}"


def registered_model(name: str, version: str | None = None) -> str:
    """Return the page of a registered model, or of one of its versions."""
    below = f"/versions/{quote(version)}" if version else ""
    return f"#/models/{quote(name, safe='')}{below}?{_TRAINING}"


def registered_models() -> str:
    """Return the page that lists the registered models."""
    return f"#/models?{_TRAINING}"
