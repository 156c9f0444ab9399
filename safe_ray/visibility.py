"""Which nodes of a cluster see the folders that a sweep is kept in.

A path means another folder on another machine, unless a file system is shared. So nothing is
concluded from paths: the driver writes a random token, and a task on each node reads it and answers
beside it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safe_ray.errors import InputError

# A node may have to start a process first, and be busy with other work.
ANSWER_SECONDS = 120.0
_NAME = ".seen-"


@dataclass(frozen=True)
class Sight:
    """What the nodes of a cluster see.

    Attributes:
        seeing: entries of `ray.nodes()`, of the nodes that see all folders.
        blind: address of each other node, and why it does not.
    """

    seeing: tuple[Mapping[str, Any], ...]
    blind: tuple[tuple[str, str], ...]


def look(
    folders: Iterable[Path], nodes: Sequence[Mapping[str, Any]], seconds: float = ANSWER_SECONDS
) -> Sight:
    """Ask every node whether it reads and writes the folders that this process does.

    Args:
        folders: made if they are missing.
        nodes: entries of `ray.nodes()`, of a cluster that this process has joined.
        seconds: a node that has not answered by then counts as blind.

    Raises:
        InputError: this process itself cannot write to a folder.
    """
    distinct = list(dict.fromkeys(folders))
    token = secrets.token_hex(16)
    try:
        for folder in distinct:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{_NAME}{token}").write_text(token)
        reasons = _ask([str(folder) for folder in distinct], token, nodes, seconds)
        for node in nodes:
            reason, name = reasons[node["NodeID"]], f"{_NAME}{token}.{node['NodeID']}"
            if not reason and not all((folder / name).is_file() for folder in distinct):
                reasons[node["NodeID"]] = "what it writes does not arrive"
    except OSError as error:
        raise InputError(
            f"Could not write to {error.filename} ({error.strerror}): name another folder with "
            "storage=<folder>."
        ) from error
    finally:
        for folder in distinct:
            for file in folder.glob(f"{_NAME}{token}*"):
                file.unlink(missing_ok=True)
    return Sight(
        tuple(node for node in nodes if not reasons[node["NodeID"]]),
        tuple(
            (node["NodeManagerAddress"], reasons[node["NodeID"]])
            for node in nodes
            if reasons[node["NodeID"]]
        ),
    )


def _ask(
    folders: list[str], token: str, nodes: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, str]:
    """Return why each node does not see the folders, by its id; "" if it does."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(folders, token, node["NodeID"])
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


def _answer(folders: list[str], token: str, node_id: str) -> str:
    for folder in map(Path, folders):
        try:
            if (folder / f"{_NAME}{token}").read_text() != token:
                return f"{folder} is another folder there"
            (folder / f"{_NAME}{token}.{node_id}").write_text(token)
        except OSError as error:
            return f"{folder}: {error.strerror}"
    return ""
