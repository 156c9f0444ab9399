"""Joining a running Ray cluster, or starting a local one."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from safe_ray import job
from safe_ray.cluster.nodes import choose_nodes
from safe_ray.cluster.resources import ClusterResources
from safe_ray.errors import InputError
from safe_ray.interruption import treat_sigterm_as_interrupt
from safe_ray.specs import NodeShape

_REACH_SECONDS = 5.0
_LOCAL = "local"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_Answer = TypeVar("_Answer")


def is_local(address: str | None) -> bool:
    """Whether `connect` would start a Ray of its own rather than join a running cluster."""
    return _address(address) == _LOCAL


def _address(address: str | None) -> str:
    return address or os.environ.get("RAY_ADDRESS") or _LOCAL


def connect(
    address: str | None,
    num_cpus: int | None,
    folders: Sequence[Path] = (),
    ceiling: Sequence[NodeShape] = (),
) -> ClusterResources:
    """Join a running Ray cluster, or start a local one, and return what it offers.

    Args:
        address: of a running cluster; None takes `RAY_ADDRESS`, and starts a local Ray without it.
        num_cpus: logical CPUs of a local Ray; None is all of this machine's.
        folders: what all work reads and writes. Nodes that do not see them as this process does get
            no work (see `working_nodes` and `label_selector`).
        ceiling: what an autoscaler may bring, which counts as if it were there. One node of each
            shape is waited for; they are held until `release_nodes`.

    Raises:
        InputError: there is no cluster at the address, none can be started here, or none of its
            nodes that have a CPU sees the folders.
    """
    resources, _ = connect_beside(address, num_cpus, lambda: None, folders, ceiling)
    return resources


def join(address: str | None, num_cpus: int | None) -> None:
    """Do the first part of `connect`: be a driver of the cluster, and ask its nodes nothing yet.

    Raises:
        InputError: there is no cluster at the address, or none can be started here.
    """
    _prepare(_address(address))
    _initialise(_address(address), num_cpus)


def connect_beside(
    address: str | None,
    num_cpus: int | None,
    work: Callable[[], _Answer],
    folders: Sequence[Path] = (),
    ceiling: Sequence[NodeShape] = (),
    on_joined: Callable[[], None] = lambda: None,
) -> tuple[ClusterResources, _Answer]:
    """Do what `connect` does, and `work` in a thread meanwhile; return what both return.

    Starting a local Ray is mostly waiting for its processes. It is done by the thread that calls,
    since they end with the thread that started them. The work may import whatever `ray.init` does
    not import: two threads that import one package can meet it half made. What it writes on
    standard error is lost.

    Args:
        address: see `connect`.
        num_cpus: see `connect`.
        work: what is done meanwhile.
        folders: see `connect`.
        ceiling: see `connect`.
        on_joined: called when Ray has started, before its nodes are asked or waited for.

    Raises:
        InputError: as `connect` does. What the work raises is raised when Ray has started.
    """
    address = _address(address)
    if ceiling and address == _LOCAL:
        raise InputError(
            "cluster.ceiling is what an autoscaler may bring, and a local Ray has none: name a "
            "running cluster with cluster.address or RAY_ADDRESS, or leave cluster.ceiling out."
        )
    _prepare(address)
    with ThreadPoolExecutor(1, "beside-ray") as pool:
        working = pool.submit(work)
        _initialise(address, num_cpus)
        on_joined()
        resources = choose_nodes(folders, ceiling)
        return resources, working.result()


def _prepare(address: str) -> None:
    """Import Ray, with its settings as they must be.

    Raises:
        InputError: nobody answers at the address.
    """
    # The environment is set while no other thread reads it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if job.is_submitted():
        # Into a log, and not onto a terminal.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    else:
        # Ray's core writes its worries about its own internals straight to the terminal.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    joining = address != _LOCAL
    if joining:
        _check_address(address)
    authenticate(os.environ, joining)
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    import ray

    if not ray.is_initialized():
        _reread_environment()


def _initialise(address: str, num_cpus: int | None) -> None:
    import ray

    if not ray.is_initialized():
        joining = address != _LOCAL
        # A job's log is what is left to read when something has gone wrong elsewhere.
        verbose = job.is_submitted()
        if verbose:
            _without_colours()
        common: dict[str, Any] = {
            "log_to_driver": verbose,
            "logging_level": "INFO" if verbose else "ERROR",
            "runtime_env": _runtime_env(joining),
        }
        try:
            with contextlib.nullcontext() if verbose else _muted_stderr():
                if joining:
                    ray.init(address, **common)
                else:
                    with _on_loopback():
                        ray.init(_LOCAL, num_cpus=num_cpus, include_dashboard=False, **common)
        except (Exception, SystemExit) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            if joining:
                raise InputError(_nobody_at(address, reason)) from error
            raise InputError(
                f"A local Ray could not be started ({reason}): give it fewer CPUs with "
                "cluster.num_cpus, or name a running cluster with cluster.address."
            ) from error
        treat_sigterm_as_interrupt()


def _without_colours() -> None:
    """Leave the codes for colours out of what Ray prints and logs: it does not ask who reads it."""
    # Ray brings the package along.
    import colorama

    colorama.init(strip=True, convert=False)

    def strip(record: logging.LogRecord) -> bool:
        record.msg, record.args = _COLOURS.sub("", record.getMessage()), ()
        return True

    for handler in logging.getLogger("ray").handlers:
        handler.addFilter(strip)


def _check_address(address: str) -> None:
    """Try the address once; Ray itself would try for two minutes, and then end the process."""
    if "://" in address:
        raise InputError(
            f"The Ray address {address} is not a cluster's own: write host:6379 in "
            "cluster.address or RAY_ADDRESS (for a dashboard's address there is "
            "`ray job submit --address`)."
        )
    host, colon, port = address.rpartition(":")
    if not colon:
        if address != "auto":
            raise InputError(f"The Ray address {address!r} has no port: write host:6379, or auto.")
        return
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"The Ray address {address!r} has no port {port!r}: write host:6379.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise InputError(_nobody_at(address, error.strerror or str(error))) from error


def _nobody_at(address: str, reason: str) -> str:
    return (
        f"There is no Ray cluster to join at {address} ({reason}): start one, correct "
        "cluster.address or RAY_ADDRESS, or leave both out to start a local one."
    )


@contextlib.contextmanager
def _muted_stderr() -> Iterator[None]:
    """Keep what Ray's core writes to the descriptor itself, past Python, off the terminal.

    It announces the log level that was set for it. Failures still arrive as exceptions.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def authenticate(environment: MutableMapping[str, str], joining: bool) -> None:
    """Decide how processes prove to Ray that they belong, unless `RAY_AUTH_MODE` says it already.

    Left alone, Ray from 2.59 on writes a token into the home folder, which changes how clusters
    that are started later behave. Whoever has an account on this machine reaches a local Ray, so it
    gets a token of its own that ends with it. A running cluster expects a token exactly where Ray
    looks for one.

    Args:
        environment: the process's environment variables, changed in place.
        joining: whether a running cluster is joined.
    """
    if "RAY_AUTH_MODE" in environment:
        return
    token_file = environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    has_token = "RAY_AUTH_TOKEN" in environment or Path(token_file).expanduser().is_file()
    if not joining and not has_token:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    environment["RAY_AUTH_MODE"] = "token" if has_token or not joining else "disabled"


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a Ray that is started here listen on the loopback interface alone.

    Ray takes the address by which others reach this machine, and then listens on all interfaces;
    where it makes no clusters of several machines, as on macOS, it takes 127.0.0.1. Its processes
    read that from the environment. Whoever has set the variable is asking for something else.
    """
    from ray._private import ray_constants as constants

    name = constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    if name in os.environ:
        yield
        return
    before = constants.ENABLE_RAY_CLUSTER
    os.environ[name] = "0"
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]


def _reread_environment() -> None:
    """Let Ray's core, which reads its settings once, when it is first imported, read them again.

    Ray does the same when it turns authentication on by itself.
    """
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def _runtime_env(joining: bool) -> dict[str, Any]:
    """Return the runtime environment of all workers.

    A Ray that is started here has the driver's own environment; without another one, the processes
    that Ray has started ahead of any work are of use. A submitted job finds this package where it
    was installed, or brings it along in its working folder; a driver that joins from outside sends
    it. Ray refuses a variable that a job's own environment sets already.
    """
    if not joining:
        return {}
    wanted = {"RAY_TRAIN_V2_ENABLED": "1"}
    given = job.runtime_env().get("env_vars") or {}
    environment: dict[str, Any] = {
        "env_vars": {name: value for name, value in wanted.items() if name not in given}
    }
    if not job.is_submitted():
        environment["py_modules"] = [str(Path(__file__).resolve().parents[1])]
    return environment
