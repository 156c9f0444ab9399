"""Nothing that the program starts by itself can be reached from another machine."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

LISTENERS = """
import json, psutil, time
from safe_ray.cluster import connect
connect(None, 1)
import ray
ray.get(ray.remote(num_cpus=1)(lambda: 1).remote())
me, deadline = psutil.Process(), time.monotonic() + 60
def listening():
    found = {}
    for process in (me, *me.children(recursive=True)):
        try:
            for socket in process.net_connections(kind="inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found[f"{process.name()}:{socket.laddr.port}"] = socket.laddr.ip
        except psutil.NoSuchProcess:
            pass
    return found
# The agents open their ports some seconds after the rest.
while time.monotonic() < deadline and not (
    any("gent" in name for name in listening()) and any("raylet" in name for name in listening())
):
    time.sleep(0.5)
time.sleep(2)
print("LISTENING", json.dumps(listening()))
ray.shutdown()
"""


@pytest.mark.timeout(240)
def test_a_local_ray_listens_on_the_loopback_interface_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS],
        cwd=PROJECT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(PROJECT),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LISTENING")] or [""]
    assert line, done.stderr[-2000:]
    listening = json.loads(line.partition(" ")[2])
    assert any("raylet" in name for name in listening), listening
    for name, address in listening.items():
        ip = ipaddress.ip_address(address)
        inner = getattr(ip, "ipv4_mapped", None) or ip
        assert inner.is_loopback, f"{name} listens on {address}"


def test_no_command_that_the_project_tells_of_listens_on_all_interfaces() -> None:
    told = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("safe_ray/**/*.py")]
    hints = [
        line.strip()
        for file in told
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"mlflow (ui|server)|optuna-dashboard|ray start", line)
    ]
    assert hints
    assert not [line for line in hints if "0.0.0.0" in line or "--host ::" in line]
