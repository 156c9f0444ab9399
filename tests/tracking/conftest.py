from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from safe_ray.tracking.mlflow import Tracker


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with MLflow's tables, which take seconds to create."""
    file = tmp_path_factory.mktemp("migrated") / "mlflow.db"
    tracker = Tracker(f"sqlite:///{file}", "another experiment", "another sweep")
    tracker.open()
    tracker.close()
    return file


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copyfile(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def head(tmp_path: Path) -> Path:
    folder = tmp_path / "banks" / "winner"
    folder.mkdir(parents=True)
    (folder / "head.safetensors").write_bytes(b"weights" * 1000)
    (folder / "head.json").write_text('{"alpha": 0.4}')
    return folder
