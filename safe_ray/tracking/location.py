"""Where the runs go: to the server that somebody named, or else into a database file.

SQLite and the file systems of a network do not go together: its locks may not hold there, and the
database is damaged or hangs. So a driver that has joined a cluster, whose storage lies on such a
file system as a rule, keeps the database on its own machine's disk. The artifacts stay on the
storage, where they are links to the heads.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_ray.job import RESULTS
from safe_ray.mounts import network_file_system
from safe_ray.tracking.connection import normalise_uri, sqlite_file

VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"


@dataclass(frozen=True)
class Location:
    """Where the runs go.

    Attributes:
        uri: with an absolute path.
        artifact_root: of a new experiment; None leaves it to the server, or puts it beside the
            database.
        is_passing: whether nobody has named a place, and this one goes with the machine.
        network: the type of the network file system that the database lies on, or None.
    """

    uri: str
    artifact_root: str | None = None
    is_passing: bool = False
    network: str | None = None


def locate_runs(
    uri: str | None,
    storage: Path,
    joining: bool,
    environment: Mapping[str, str] = os.environ,
    disks: Sequence[Path] = (),
) -> Location:
    """Return where the runs of a sweep go.

    Args:
        uri: the setting `tracking.uri`; None takes MLFLOW_TRACKING_URI.
        storage: the folder of all that is written.
        joining: whether a running cluster is joined.
        environment: the environment's variables.
        disks: folders to try, in their order, for a database on this machine; by default the home
            folder's, and those for passing files.

    Raises:
        InputError: what was named is no store of MLflow's.
    """
    named, setting = (uri, "tracking.uri") if uri else (environment.get(VARIABLE), VARIABLE)
    if named:
        found = normalise_uri(named, setting=setting)
        file = sqlite_file(found)
        return Location(found, network=None if file is None else network_file_system(file))
    if not joining:
        return Location(normalise_uri(f"sqlite:///{storage}/{DATABASE}"))
    folder = _own_disk(disks or _disks())
    return Location(f"sqlite:///{folder / DATABASE}", str(storage / ARTIFACTS), is_passing=True)


def _disks() -> list[Path]:
    own = f"{RESULTS}-{os.getuid()}"
    return [Path.home() / RESULTS, Path("/var/tmp") / own, Path(tempfile.gettempdir()) / own]


def _own_disk(folders: Sequence[Path]) -> Path:
    """Return the first folder that can be written to and lies on no network, or else the last."""
    for folder in folders:
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if usable and network_file_system(existing) is None:
            return folder
    return folders[-1]
