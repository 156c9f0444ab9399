"""A cluster whose nodes do not all see the storage: mounts of their own hide it from some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters import Head, Job, can_hide, run_job, running_head, running_node

PROJECT = Path(__file__).parents[1]
RESULTS = "safe-ray-results"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(560),
    pytest.mark.skipif(not can_hide(), reason="nobody may mount here"),
]


@dataclass(frozen=True)
class Machines:
    """A head without CPUs, one node of 2 CPUs that shares its `home`, one of 4 that does not.

    Neither of the two sees what is in `local`.
    """

    head: Head
    home: Path
    local: Path


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    home, local = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("local")
    environment = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "OMP_NUM_THREADS": "1",
    }
    with (
        running_head(environment, cpus=0) as head,
        running_node(head, 2, hidden=[local]),
        running_node(head, 4, hidden=[local, home]),
    ):
        machines = Machines(head, home, local)
        deadline = time.monotonic() + 120
        while joined(machines, "import ray\nprint(len(ray.nodes()))") != "3":
            assert time.monotonic() < deadline, joined(machines, "import ray\nprint(ray.nodes())")
            time.sleep(1)
        yield machines


def joined(machines: Machines, code: str) -> str:
    """Return what a driver on the head prints last."""
    connect = "from safe_ray.cluster import connect\nconnect('{}', None)\n"
    done = subprocess.run(
        [sys.executable, "-c", connect.format(machines.head.address) + code],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=PROJECT,
        env=machines.head.environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def submit(machines: Machines, config_dir: Path, *overrides: str) -> Job:
    # Without a working directory: these nodes share one folder for what is sent to them.
    entry_point = [
        *("python", "-m", "safe_ray.tune", "--config-dir", str(config_dir)),
        *("backbone=tiny", "tasks.datasets=[shapes]", "tasks.shots=[2]", "tasks.seeds=[1]"),
        *("features.views=1", "search.candidates=2", "search.bank=2", "search.epochs=3"),
        *overrides,
    ]
    return run_job(machines.head, entry_point, PROJECT)


def test_each_node_is_asked_what_it_sees(machines: Machines):
    code = (
        "import json, sys, ray\n"
        "from pathlib import Path\n"
        "from safe_ray.visibility import light, look, put_out\n"
        f"for folders in ([{str(machines.home)!r}], [{str(machines.local)!r}], ['/dev/shm']):\n"
        "    beacon = light([Path(folder) / 'new' for folder in folders])\n"
        "    sight = look(beacon, ray.nodes())\n"
        "    put_out(beacon)\n"
        "    said.append([[n['Resources'].get('CPU', 0) for n in sight.seeing],\n"
        "                 [reason for _, reason in sight.blind]])\n"
        "print(json.dumps(said))\n"
    )
    home, local, everywhere = json.loads(joined(machines, "said = []\n" + code))
    assert sorted(home[0]) == [0, 2]
    assert home[1] == [f"{machines.home}/new: No such file or directory"]
    assert local[0] == [0]
    assert len(local[1]) == 2
    assert sorted(everywhere[0]) == [0, 2, 4]
    assert not list((machines.home / "new").iterdir())


def test_work_stays_on_the_nodes_that_see_the_storage(machines: Machines, tiny_config_dir: Path):
    # Two workers a bank: they are placed by Ray Train, and all else by the sweep itself.
    name = "shared"
    done = submit(machines, tiny_config_dir, f"sweep={name}", "training.workers=2")
    assert done.succeeded, done.log[-6000:]
    assert "1 of 3 nodes do not see" in done.log
    folder = machines.home / RESULTS / "outputs" / name
    assert len(json.loads((folder / "summary.json").read_text())) == 1
    assert str(folder / "summary.json") in done.log
    assert os.uname().nodename in done.log


def test_a_storage_that_no_node_with_a_cpu_sees_is_refused_in_a_sentence(
    machines: Machines, tiny_config_dir: Path
):
    done = submit(machines, tiny_config_dir, f"storage={machines.local}", "sweep=nowhere")
    assert not done.succeeded
    said = {line for line in done.log.splitlines() if line.startswith("safe_ray:")}
    assert len(said) == 1, done.log[-3000:]
    (sentence,) = said
    assert f"has a CPU sees {machines.local} as" in sentence
    assert "SAFE_RAY_STORAGE" in sentence
    assert "exit code 2" in done.message
    assert "Traceback" not in done.log
    assert not (machines.local / "outputs" / "nowhere" / "config.json").exists()
