"""Ray clusters of processes of their own, as `ray start` makes them on separate machines."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.hosts import Host

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node: where jobs are submitted, and the environment of its clients."""

    dashboard: str
    environment: dict[str, str]
    address: str = ""
    temporary: str = ""
    pid: int = 0


@contextlib.contextmanager
def running_head(
    environment: Mapping[str, str],
    cpus: int = 2,
    brings: Mapping[str, tuple[int, Mapping[str, float]]] | None = None,
    *,
    host: Host | None = None,
    options: Sequence[str] = (),
) -> Iterator[Head]:
    """Start a head node, and end it at the end of the block.

    Args:
        environment: of the head, over this process's own.
        cpus: its logical CPUs.
        brings: what its autoscaler may bring: the most nodes of each type, and what each has. Its
            nodes are processes of this machine. An idle one goes after some seconds.
        host: where it runs; None is this machine, by its loopback address.
        options: further ones of `ray start`.
    """
    port, dashboard, client, agent = free_ports(4)
    everything = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SAFE_RAY_"))},
        # The entry point's `python` is the first on the head's path.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": os.environ.get("RAY_worker_niceness", "0"),
        **environment,
    }
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}"),
            *_at(host),
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={folder}",
            "--object-store-memory=200000000",
        ]
        command += options
        if brings is not None:
            config = Path(folder) / "autoscaler.json"
            config.write_text(json.dumps(_autoscaler(f"127.0.0.1:{port}", brings)))
            command.append(f"--autoscaling-config={config}")
            everything |= _AUTOSCALER_ENVIRONMENT
        if host is not None:
            command = host.here([*command, f"--dashboard-host={host.address}"])
        with _running(command, everything) as process:
            ip = host.address if host is not None else "127.0.0.1"
            address = f"http://{ip}:{dashboard}"
            _wait_for(f"{address}/api/version", process)
            yield Head(address, everything, f"{ip}:{port}", folder, process.pid)


def _at(host: Host | None) -> list[str]:
    return [] if host is None else [f"--node-ip-address={host.address}"]


_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
_AUTOSCALER_ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    # The second version, which KubeRay's clusters run.
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
}

_COMMANDS = (
    *("cluster_synced_files", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)


def _autoscaler(
    address: str, brings: Mapping[str, tuple[int, Mapping[str, float]]]
) -> dict[str, Any]:
    """Return what `ray.cluster_utils.AutoscalingCluster` would write.

    That class itself ends every Ray of the machine when it starts, and reads a file that Ray's
    wheel does not have.
    """
    types: dict[str, Any] = {
        name: {
            "resources": {**has, "object_store_memory": 100_000_000},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        }
        for name, (most, has) in brings.items()
    }
    types["ray.head.default"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {
        "cluster_name": "test",
        "max_workers": sum(most for most, _ in brings.values()),
        "provider": {
            "type": "external",
            "module": provider,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": address,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.25,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in _COMMANDS},
    }


def live_nodes(head: Head) -> int:
    """Return how many nodes a cluster has now, its head included."""
    from ray._raylet import GcsClient

    infos = GcsClient(head.address).get_all_node_info(timeout=30)
    return sum(info.state == info.ALIVE for info in infos.values())


@contextlib.contextmanager
def running_node(
    head: Head,
    cpus: int,
    hidden: Sequence[Path] = (),
    *,
    host: Host | None = None,
    options: Sequence[str] = ("--object-store-memory=200000000",),
) -> Iterator[int]:
    """Start another node, give its process's id, and end it at the end of the block.

    Args:
        head: of the cluster that it joins.
        cpus: its logical CPUs.
        hidden: folders in whose place it has empty ones of its own, as another machine would.
        host: where it runs; None is this machine.
        options: further ones of `ray start`.
    """
    agent, grpc = free_ports(2)
    start = [
        *(str(BIN / "ray"), "start", "--block", f"--address={head.address}"),
        *(f"--num-cpus={cpus}", *_at(host), *options),
        *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    command = [*_elsewhere(hidden), *start]
    with (
        tempfile.TemporaryFile() as said,
        _running(
            command if host is None else host.here(command), head.environment, said
        ) as process,
    ):
        deadline = time.monotonic() + 120
        # Two nodes of one machine that start at once would take the same names.
        while b"Ray runtime started" not in os.pread(said.fileno(), 10_000, 0):
            words = os.pread(said.fileno(), 10_000, 0).decode()
            assert process.poll() is None, f"the node ended: {words}"
            assert time.monotonic() < deadline, f"the node does not start: {words}"
            time.sleep(0.2)
        yield process.pid


@dataclass(frozen=True)
class Job:
    """A submitted job that has ended.

    Attributes:
        succeeded: what Ray says of its end.
        log: what its driver printed; of a job that was not accepted, what the client printed.
        message: Ray's words for its end.
    """

    succeeded: bool
    log: str
    message: str


def run_job(
    head: Head,
    entry_point: Sequence[str],
    project: Path,
    *,
    working_dir: bool = False,
    seconds: float = 400,
) -> Job:
    """Submit a job, wait for its end, and read its log.

    `ray job submit` follows the log over a WebSocket, and fails when that breaks, however well
    the job goes on: so the job is asked for its status instead.

    Args:
        head: where it is submitted.
        entry_point: the words of its command.
        project: the client's working directory.
        working_dir: whether the project is sent to the cluster.
        seconds: after which a job that has not ended is an error.
    """

    environment = {**head.environment, "RAY_ADDRESS": head.dashboard}
    name = f"job-{uuid.uuid4().hex[:12]}"
    sent = ("--working-dir", ".") if working_dir else ()
    submit = ("ray", "job", "submit", "--no-wait", "--submission-id", name, *sent, "--")
    done = subprocess.run(
        [str(BIN / submit[0]), *submit[1:], *entry_point],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        return Job(False, done.stdout, "")
    deadline = time.monotonic() + seconds
    # The client's own `ray job status` takes two seconds of the job's processors each time.
    while (about := _ask(head, f"api/jobs/{name}"))["status"] in ("PENDING", "RUNNING"):
        log = "" if time.monotonic() < deadline else _ask(head, f"api/jobs/{name}/logs")["logs"]
        assert time.monotonic() < deadline, f"{name} does not end: {log}"
        time.sleep(0.5)
    log = _ask(head, f"api/jobs/{name}/logs")["logs"]
    return Job(about["status"] == "SUCCEEDED", log, about["message"])


def _ask(head: Head, what: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{head.dashboard}/{what}")
    if token := head.environment.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


def can_hide() -> bool:
    """Return whether this system lets a process have a view of its own of the file system."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*_elsewhere([Path(folder)]), "true"]
        with contextlib.suppress(OSError):
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def _elsewhere(hidden: Sequence[Path]) -> list[str]:
    if not hidden:
        return []
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in hidden)
    return ["unshare", *user, "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh"]


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str], output: Any = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a node and all that it started, some of which leaves its process group."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            # It answers, and wants a token.
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"nobody answers at {url}")
