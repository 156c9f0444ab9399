"""Which nodes of a cluster see the folders that a sweep is kept in.

A path means another folder on another machine, unless a file system is shared. So nothing is
concluded from paths: the driver writes a random token, and a task on each node reads it, does what
work does with files (write, fsync, rename, read, list), and leaves a file that the driver finds.

Nodes may join later. The token stays where it is while the driver runs, and whatever works on a
node looks for it before its first file (`check_sight`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_ray.errors import BlindNodeError, InputError

# A node may have to start a process first, and be busy with other work.
ANSWER_SECONDS = 120.0
# A shared file system may show a file late to those who did not write it.
ARRIVAL_SECONDS = 10.0
_NAME = ".seen-"
_FORGOTTEN_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True)
class Beacon:
    """A token in each of some folders, by which a process knows that they are the driver's.

    It travels as JSON.
    """

    folders: tuple[str, ...]
    token: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"folders": list(self.folders), "token": self.token}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Beacon:
        """Read what `to_json` returned."""
        return Beacon(tuple(value["folders"]), value["token"])


@dataclass(frozen=True)
class Sight:
    """What the nodes of a cluster see.

    Attributes:
        seeing: entries of `ray.nodes()`, of the nodes that see all folders.
        blind: the other nodes, each with why it does not.
    """

    seeing: tuple[Mapping[str, Any], ...]
    blind: tuple[tuple[Mapping[str, Any], str], ...]


def light(folders: Iterable[Path]) -> Beacon:
    """Write a new token into the folders, which are made if they are missing.

    Raises:
        InputError: this process cannot write to one of them.
    """
    distinct = list(dict.fromkeys(folders))
    token = secrets.token_hex(16)
    with _refusing():
        for folder in distinct:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_old(folder)
            (folder / f"{_NAME}{token}").write_text(token)
    return Beacon(tuple(map(str, distinct)), token)


def put_out(beacon: Beacon) -> None:
    """Remove the token, and what nodes have left beside it."""
    for folder in map(Path, beacon.folders):
        with contextlib.suppress(OSError):
            for file in folder.glob(f"{_NAME}{beacon.token}*"):
                file.unlink(missing_ok=True)


def look(
    beacon: Beacon, nodes: Sequence[Mapping[str, Any]], seconds: float = ANSWER_SECONDS
) -> Sight:
    """Ask every node whether it reads and writes the folders that this process does.

    Args:
        beacon: what this process has lit.
        nodes: entries of `ray.nodes()`, of a cluster that this process has joined.
        seconds: a node that has not answered by then counts as blind.

    Raises:
        InputError: this process itself cannot read a folder.
    """
    reasons = _ask(beacon, nodes, seconds)
    with _refusing():
        for node in nodes:
            if not reasons[node["NodeID"]] and not _arrived(beacon, node["NodeID"]):
                reasons[node["NodeID"]] = "what it writes does not arrive"
    return Sight(
        tuple(node for node in nodes if not reasons[node["NodeID"]]),
        tuple((node, reasons[node["NodeID"]]) for node in nodes if reasons[node["NodeID"]]),
    )


def check_sight(beacon: Mapping[str, Any] | None) -> None:
    """Check that this process sees the driver's folders, before it works with their files.

    Args:
        beacon: as JSON; None where nothing can be amiss.

    Raises:
        BlindNodeError: it does not. The work belongs on another node, and the driver must keep it
            from this one.
    """
    if beacon is None:
        return
    reason = _sight_of_process(Beacon.from_json(beacon))
    if not reason:
        return
    import ray

    node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
    raise BlindNodeError(
        f"the node {address} does not see the storage as the driver does ({reason}), and gets no "
        "more work",
        node,
    )


# A process on a node sees what it sees.
@functools.lru_cache(maxsize=8)
def _sight_of_process(beacon: Beacon) -> str:
    return reason_for_blindness(beacon, uuid.uuid4().hex[:8])


def _ask(beacon: Beacon, nodes: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, str]:
    """Return why each node does not see the folders, by its id; "" if it does."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(beacon.to_json(), node["NodeID"])
        for node in nodes
    }
    deadline = time.monotonic() + seconds
    reasons: dict[str, str] = {}
    for node_id, answer in asked.items():
        try:
            reasons[node_id] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except GetTimeoutError:
            ray.cancel(answer, force=True)
            reasons[node_id] = f"it did not answer in {seconds:.0f} s"
        except RayError as error:
            # For instance a node that has died, or one where this package is not installed.
            reasons[node_id] = str(error).strip().splitlines()[-1]
    return reasons


def _answer(beacon: dict[str, Any], name: str) -> str:
    return reason_for_blindness(Beacon.from_json(beacon), name, keep=True)


def reason_for_blindness(
    beacon: Beacon, name: str, keep: bool = False, seconds: float = ARRIVAL_SECONDS
) -> str:
    """Do in each folder what work does there, and return what went wrong; "" if nothing did.

    Args:
        beacon: of the driver.
        name: of the file that is written beside the token, different for each process.
        keep: whether the file stays, for the driver to find.
        seconds: how long the token may take to arrive.
    """
    deadline = time.monotonic() + seconds
    for folder in map(Path, beacon.folders):
        try:
            while not (folder / f"{_NAME}{beacon.token}").is_file():
                # An empty folder in its place shows nothing, however long one waits.
                if not folder.is_dir() or time.monotonic() >= deadline:
                    raise FileNotFoundError(2, os.strerror(2))
                time.sleep(0.5)
            if (folder / f"{_NAME}{beacon.token}").read_text() != beacon.token:
                return f"{folder} is another folder there"
            _use(folder, f"{_NAME}{beacon.token}.{name}", beacon.token, keep)
        except OSError as error:
            return f"{folder}: {error.strerror}"
    return ""


def _use(folder: Path, name: str, content: str, keep: bool) -> None:
    """Write a file under another name, sync it, rename it, and find it again.

    Raises:
        OSError: the folder's file system cannot do that.
    """
    unnamed, named = folder / f"{name}.new", folder / name
    try:
        with unnamed.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unnamed.replace(named)
        if named.read_text() != content:
            raise OSError(5, "what is written there is not what is read")
        if named not in folder.iterdir():
            raise OSError(5, "what is written there is not listed")
    finally:
        unnamed.unlink(missing_ok=True)
        if not keep:
            named.unlink(missing_ok=True)


def _arrived(beacon: Beacon, node: str) -> bool:
    name = f"{_NAME}{beacon.token}.{node}"
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while not all(place / name in place.iterdir() for place in map(Path, beacon.folders)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)
    return True


def _forget_old(folder: Path) -> None:
    """Remove the tokens of drivers that ended long ago without a chance to."""
    with contextlib.suppress(OSError):
        for file in folder.glob(f"{_NAME}*"):
            if time.time() - file.stat().st_mtime > _FORGOTTEN_SECONDS:
                file.unlink()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"Could not write to {error.filename} ({error.strerror}): name another folder with "
            "storage=<folder>."
        ) from error
