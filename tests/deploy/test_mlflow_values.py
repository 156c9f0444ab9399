"""The values for MLflow's own chart say what the server of the pinned version understands.

The chart itself is MLflow's. What it makes of these values is one command: `mlflow server`, with
`--key=value` for each value option and `--flag` for each flag option.
"""

from __future__ import annotations

import urllib.parse

import pytest
import yaml
from mlflow.cli import server
from mlflow.server.security_utils import is_allowed_host_header

from tests.deploy.charts import DEPLOY
from tests.deploy.test_chart import values_of

VALUES = yaml.safe_load((DEPLOY / "values" / "mlflow.yaml").read_text())
OPTIONS = {name for param in server.params for name in (*param.opts, *param.secondary_opts)}
ALLOWED = VALUES["server"]["value_options"]["allowed_hosts"].split(",")


def test_the_server_knows_every_option():
    given = [*VALUES["server"]["value_options"], *VALUES["server"]["flag_options"]]
    assert {f"--{name.replace('_', '-')}" for name in given} <= OPTIONS


def test_artifacts_go_through_the_server_and_runs_into_a_database_from_a_secret():
    assert "serve_artifacts" in VALUES["server"]["flag_options"]
    assert VALUES["mlflow"]["artifactsDestination"]
    reference = VALUES["mlflow"]["backendStoreUriFrom"]["secretKeyRef"]
    assert reference == {"name": "mlflow-database", "key": "uri"}
    assert "backendStoreUri" not in VALUES["mlflow"]


@pytest.mark.parametrize("name", ["gpu", "gpu-spot", "kueue"])
def test_the_address_that_sweeps_use_is_one_that_the_server_answers_to(name: str):
    """It refuses requests whose Host is not listed, port included."""
    address = urllib.parse.urlsplit(values_of(name)["mlflow"]["trackingUri"])
    assert is_allowed_host_header(ALLOWED, address.netloc)


def test_a_forwarded_port_is_answered_to_and_a_stranger_is_not():
    assert is_allowed_host_header(ALLOWED, "localhost:5000")
    assert not is_allowed_host_header(ALLOWED, "mlflow.example.com")
