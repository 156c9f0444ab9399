"""What the tests of whole sweeps share: weights, stored maps beside them, one finished sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.specs import BackboneSpec
from tests.conftest import write_weights
from tests.mlflow_servers import migrated_database
from tests.sweep.commands import command, run


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: BackboneSpec) -> Path:
    """A weights file, as plain open_clip reads it, beside what `command` shares among sweeps."""
    folder = tmp_path_factory.mktemp("weights")
    migrated_database(folder)
    return write_weights(tiny_backbone, folder)


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_config_dir: Path, weights: Path
) -> tuple[Path, str]:
    """One whole sweep of two tasks: where it is, and what it printed."""
    storage = tmp_path_factory.mktemp("storage")
    done = run(command(tiny_config_dir, weights, storage))
    assert done.returncode == 0, done.stderr[-3000:]
    return storage, done.stdout
