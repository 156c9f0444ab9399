"""`ray job submit -- python -m safe_ray.tune` to a head that runs elsewhere than the client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Head:
    """A head node, where its jobs are submitted, and the environment of its clients."""

    dashboard: str
    environment: dict[str, str]


@pytest.fixture
def head() -> Iterator[Head]:
    port, dashboard, client, agent = free_ports(4)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        # The entry point's `python` is the first on the head's path.
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        started = subprocess.Popen(
            [
                str(BIN / "ray"),
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
                f"--dashboard-agent-listen-port={agent}",
                f"--temp-dir={folder}",
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_for(f"{address}/api/version", started)
            yield Head(address, environment)
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"nobody answers at {url}")


def test_a_submitted_sweep_runs_on_the_cluster_it_was_sent_to(
    head: Head, tmp_path: Path, tiny_config_dir: Path
) -> None:
    done = subprocess.run(
        [
            str(BIN / "ray"),
            "job",
            "submit",
            "--address",
            head.dashboard,
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            "safe_ray.tune",
            "--config-dir",
            str(tiny_config_dir),
            "backbone=tiny",
            "tasks.datasets=[shapes]",
            "tasks.shots=[1]",
            "tasks.seeds=[1]",
            "features.views=1",
            "search.candidates=2",
            "search.bank=2",
            "search.epochs=3",
            f"storage={tmp_path}",
            "sweep=submitted",
        ],
        cwd=PROJECT,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert "SAFE minus zero-shot" in done.stdout
    summary = json.loads((tmp_path / "outputs" / "submitted" / "summary.json").read_text())
    assert [entry["dataset"] for entry in summary] == ["shapes"]


def test_a_stopped_job_leaves_its_sentence_in_the_log(
    head: Head, tmp_path: Path, tiny_config_dir: Path
) -> None:
    def job(*arguments: str) -> str:
        return subprocess.run(
            [str(BIN / "ray"), "job", *arguments],
            cwd=PROJECT,
            env={**head.environment, "RAY_ADDRESS": head.dashboard},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout

    entry_point = [
        *("python", "-m", "safe_ray.tune", "--config-dir", str(tiny_config_dir)),
        *("backbone=tiny", "tasks.datasets=[shapes]", "tasks.shots=[1]", "tasks.seeds=[1]"),
        *("features.views=1", "search.candidates=2", "search.bank=1", "search.epochs=20000"),
        *(f"storage={tmp_path}", "sweep=stopped"),
    ]
    name = "a-job-to-stop"
    submitted = ("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--")
    job(*submitted, *entry_point)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/stopped/banks/*/*/job.json")):
        assert time.monotonic() < deadline, job("logs", name)
        time.sleep(0.5)
    # A trial is being started, or is in training.
    time.sleep(5)
    job("stop", name)
    log = job("logs", name)
    assert "nothing that was finished is lost" in log
    assert "sweep=stopped" in log
    assert "Traceback" not in log
