"""Harm to MLflow: a server that is down, slow or refusing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.faults.lab import Lab
from tests.faults.servers import Door, Mode


@contextlib.contextmanager
def behind_a_door(lab: Lab) -> Iterator[None]:
    """Let the sweep write to a server through a door, which is open at first."""
    if lab.door is not None:
        yield
        return
    server = lab.world.server
    door = Door(server.port)
    door.become("open")
    lab.door, lab.tracking = door, server.uri
    lab.overrides += [
        f"tracking.uri=http://127.0.0.1:{door.port}",
        f"tracking.experiment={lab.folder.name}",
    ]
    lab.environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    try:
        yield
    finally:
        door.close()


def _turn(lab: Lab, mode: Mode) -> None:
    assert lab.door is not None
    door = lab.door
    door.become(mode)
    lab.mend.append(lambda: door.become("open"))


def from_the_start(mode: Mode) -> Callable[[Lab], None]:
    """Return what finds MLflow so when the sweep begins."""

    def harm(lab: Lab) -> None:
        _turn(lab, mode)
        lab.running().end()

    return harm


def from_a_moment(mode: Mode, *moments: str) -> Callable[[Lab], None]:
    """Return what makes MLflow so when the sweep has come to one of some moments."""

    def harm(lab: Lab) -> None:
        lab.reach(lab.random.choice(moments))
        _turn(lab, mode)

    return harm
