"""Where the runs of a sweep go, in words: what a person wants to know of it at the start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

from safe_ray.cluster import is_local
from safe_ray.config import SweepConfig
from safe_ray.sweep.closing import compare_command, track_command
from safe_ray.tracking.connection import displayed
from safe_ray.tracking.location import VARIABLE, Location, locate_runs


def location_of(config: SweepConfig) -> Location:
    """Return where the runs of a sweep go.

    Raises:
        InputError: what was named is no store of MLflow's.
    """
    joining = not is_local(config.cluster.address)
    return locate_runs(config.tracking.uri, config.storage, joining)


def remarks(location: Location) -> Iterator[str]:
    """Yield what a person should know who has named no server, or a database in a bad place."""
    if location.is_passing:
        yield (
            f"MLflow: no server is named, so the runs go into a database on the own disk of "
            f"{socket.gethostname()}, and with that machine they are gone; to look at them there: "
            f"{compare_command(location.uri)}. A server is better: name it with {VARIABLE} or "
            "tracking.uri=http://<host>:5000."
        )
    if location.network is not None:
        yield (
            f"MLflow: the database {displayed(location.uri)} lies on a network file system "
            f"({location.network}), where SQLite can be damaged or hang: name a server with "
            f"{VARIABLE} or tracking.uri=http://<host>:5000, or a file on a disk of this machine."
        )


def remedy(folder: Path) -> str:
    """Return the sentence that says what becomes of what MLflow does not take."""
    return (
        "The sweep goes on, and its own files hold every result; what MLflow has not heard is "
        "recorded when it answers again, by the next run of this sweep, or by "
        f"`{track_command(folder)}`."
    )
