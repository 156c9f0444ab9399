"""Ray clusters of processes of their own, as `ray start` makes them on separate machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A head node: where jobs are submitted, and the environment of its clients."""

    dashboard: str
    environment: dict[str, str]
    address: str = ""
    temporary: str = ""


@contextlib.contextmanager
def running_head(environment: Mapping[str, str], cpus: int = 2) -> Iterator[Head]:
    """Start a head node, and end it at the end of the block."""
    port, dashboard, client, agent = free_ports(4)
    everything = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SAFE_RAY_"))},
        # The entry point's `python` is the first on the head's path.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        **environment,
    }
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        command = [
            *(str(BIN / "ray"), "start", "--head", "--block", f"--num-cpus={cpus}"),
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
            f"--temp-dir={folder}",
        ]
        with _running(command, everything) as process:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_for(f"{address}/api/version", process)
            yield Head(address, everything, f"127.0.0.1:{port}", folder)


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
