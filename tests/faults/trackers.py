"""Harm to MLflow: a server that is down, slow or refusing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from tests.faults.lab import Lab
from tests.mlflow_servers import Door

Mode = Literal["down", "slow", "refusing"]
_SLOW_SECONDS = 10.0


@contextlib.contextmanager
def behind_a_door(lab: Lab) -> Iterator[None]:
    """Let the sweep write to a server through a door, which is open at first."""
    if lab.door is not None:
        yield
        return
    server = lab.world.server
    door = Door(server)
    door.open()
    lab.door, lab.tracking = door, f"http://127.0.0.1:{server}"
    # Nothing of this is about images.
    if lab.cluster is None:
        lab.store = lab.world.undisturbed / "features"
    lab.overrides += [f"tracking.experiment={lab.folder.name}", "tracking.patience=10"]
    try:
        yield
    finally:
        door.close()


def _become(door: Door, mode: Mode) -> None:
    if mode == "down":
        door.close()
    elif mode == "slow":
        door.delay = _SLOW_SECONDS
    else:
        door.denies = True


def _turn(lab: Lab, mode: Mode) -> None:
    door = lab.door
    assert door is not None
    _become(door, mode)

    def mend() -> None:
        door.delay, door.denies = 0.0, False
        door.close()
        door.open()

    lab.mend.append(mend)


def from_the_start(mode: Mode) -> Callable[[Lab], None]:
    """Return what finds MLflow so when the sweep begins, and throughout."""

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
