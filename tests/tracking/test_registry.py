"""Models of the registry, as whoever uses a head sees them."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.tracking.registry import fetch, version_of


def test_an_alias_is_followed_where_it_moves(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    before = mlflow.get_tracking_uri()
    client = MlflowClient(uri, registry_uri=uri)
    client.create_registered_model("photos")
    for number in ("1", "2"):
        folder = tmp_path / f"version-{number}"
        folder.mkdir()
        (folder / "head.json").write_text(number)
        client.create_model_version("photos", str(folder))
    for number in ("1", "2"):
        client.set_registered_model_alias("photos", "best", number)
        assert version_of("models:/photos@best") == f"photos/{number}"
        assert (fetch("models:/photos@best") / "head.json").read_text() == number
    assert version_of("models:/photos/1") == "models:/photos/1"
    # What the process itself speaks to is as it was.
    assert mlflow.get_registry_uri() == mlflow.get_tracking_uri() == before
    with pytest.raises(InputError, match="does not give models:/photos@worst"):
        version_of("models:/photos@worst")


def test_a_database_that_is_not_there_is_told_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    for ask in (fetch, version_of):
        with pytest.raises(InputError, match=r"there is no database .*mlflow\.db: correct MLFLOW_"):
            ask("models:/photos@best")
    assert not file.exists()
