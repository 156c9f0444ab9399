"""Where runs go: what is named, or a database; in a cluster, on the driver's own disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray import mounts
from safe_ray.errors import InputError
from safe_ray.tracking.location import VARIABLE, Location, locate_runs

STORAGE = Path("/shared/safe")


def test_the_setting_goes_before_the_environment_and_that_before_a_file():
    named = {VARIABLE: "http://mlflow:5000/"}
    for joining in (False, True):
        found = locate_runs("http://other:1", STORAGE, joining, named)
        assert found == Location("http://other:1")
        assert locate_runs(None, STORAGE, joining, named) == Location("http://mlflow:5000")


def test_alone_the_database_lies_in_the_storage_folder():
    assert locate_runs(None, STORAGE, False, {}) == Location("sqlite:////shared/safe/mlflow.db")
    assert locate_runs(None, STORAGE, False, {VARIABLE: ""}).uri.endswith("/safe/mlflow.db")


def test_in_a_cluster_the_database_lies_on_the_drivers_own_disk_and_the_heads_stay(tmp_path: Path):
    found = locate_runs(None, STORAGE, True, {}, [tmp_path / "results"])
    assert found.uri == f"sqlite:///{tmp_path}/results/mlflow.db"
    assert found.artifact_root == "/shared/safe/mlartifacts"
    assert found.is_passing
    # Nothing is made by asking.
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_results_folder_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = locate_runs(None, STORAGE, True, {})
    assert found.uri == f"sqlite:///{tmp_path}/safe-ray-results/mlflow.db"


def test_a_home_folder_on_a_network_or_a_file_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "home").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "file").touch()
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
        f"40 22 0:50 / {tmp_path}/home rw shared:9 - nfs4 server:/home rw\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    places = [tmp_path / "home" / "a", tmp_path / "file" / "b", tmp_path / "disk" / "c"]
    found = locate_runs(None, STORAGE, True, {}, places)
    assert found.uri == f"sqlite:///{tmp_path}/disk/c/mlflow.db"
    named = locate_runs(f"sqlite:///{tmp_path}/home/mlflow.db", STORAGE, True, {})
    assert named.network == "nfs4"


def test_a_variable_that_names_no_store_is_refused_by_its_name():
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI=mlruns is a folder"):
        locate_runs(None, STORAGE, True, {VARIABLE: "mlruns"})
