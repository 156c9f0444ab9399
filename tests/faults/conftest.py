"""One world, and one cluster of three nodes, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.nodes import Cluster, cluster
from tests.faults.world import World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults") / "world")
    yield made
    made.end()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder that all nodes share."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def nodes(home: Path) -> Iterator[Cluster]:
    """A head without CPUs and two nodes of one, whoever comes without a token being sent away."""
    environment = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
    }
    with cluster(environment) as running:
        running.add()
        running.add()
        running.wait_for(2)
        yield running
