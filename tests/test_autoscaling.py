"""Clusters that begin with nothing but a head: a ceiling says what may come, and it comes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.clusters import Head, can_hide, live_nodes, running_head, running_node

PROJECT = Path(__file__).parents[1]
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def until(holds: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@contextlib.contextmanager
def running(head: Head, arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a driver on the head's machine, and end it at the end of the block."""
    environment = {**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": str(PROJECT)}
    with log.open("wb") as file:
        driver = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdout=file, stderr=file
        )
    try:
        yield driver
    finally:
        # Its workers belong to the cluster's nodes, and end with it.
        driver.kill()
        driver.wait()


def sweep(config_dir: Path, storage: Path, *overrides: str) -> list[str]:
    return [
        *("-m", "safe_ray.tune", "--config-dir", str(config_dir), f"storage={storage}"),
        *("sweep=grown", "backbone=tiny", "tasks.datasets=[shapes]", "tasks.shots=[1]"),
        *("tasks.seeds=[1,2]", "features.views=0", "search.candidates=2", "search.bank=1"),
        *("search.epochs=2", *overrides),
    ]


def test_a_sweep_makes_a_cluster_grow_from_nothing_to_its_ceiling_and_leaves_nothing(
    tmp_path: Path, tiny_config_dir: Path
) -> None:
    """Each bank takes a whole node, and two tasks have one in training at a time."""
    log = tmp_path / "log"
    with running_head(ENVIRONMENT, cpus=0, brings={"small": (2, {"CPU": 2})}) as head:
        until(lambda: live_nodes(head) == 1, "no head")
        refused = tmp_path / "refused"
        with running(head, sweep(tiny_config_dir, tmp_path / "none"), refused) as driver:
            assert driver.wait(200) == 2, refused.read_text()
        assert "cluster.ceiling=[{nodes: 4, cpus: 8}]" in refused.read_text()

        seen: set[int] = set()
        arguments = sweep(
            tiny_config_dir,
            tmp_path / "storage",
            "training.cpus_per_worker=2",
            "cluster.ceiling=[{nodes: 2, cpus: 2}]",
        )
        with running(head, arguments, log) as driver:
            while driver.poll() is None:
                seen.add(live_nodes(head))
                time.sleep(0.3)
        said = log.read_text()
        assert driver.returncode == 0, said[-5000:]
        assert seen == {1, 2, 3}, said[-5000:]
        until(lambda: live_nodes(head) == 1, "idle nodes stay", 120)
    assert "Planning for 4 CPUs and no GPU on 2 nodes, 1 of them to come" in said
    assert "Traceback" not in said
    summary = json.loads((tmp_path / "storage/outputs/grown/summary.json").read_text())
    assert len(summary) == 2
    assert not list((tmp_path / "storage").rglob(".seen-*"))


LATE = """
import sys, threading, time
from pathlib import Path
import ray
from safe_ray import cluster
from safe_ray.specs import NodeShape

def say(sentence):
    print(sentence, flush=True)

def write(folder):
    (Path(folder) / "written").write_text("on a node that sees it")

def wait(seconds):
    time.sleep(seconds)

folder = Path(sys.argv[1])
cluster.join(None, None)
with cluster.Waiting(say) as waiting:
    waiting.begin()
    say(f"planned: {cluster.connect(None, None, [folder], [NodeShape(2, 2.0)])}")
    cluster.release_nodes()
    # The one node that there is has no place left.
    kept = ray.remote(num_cpus=2)(wait).remote(3600)
    while ray.available_resources().get("CPU", 0) > 0:
        time.sleep(0.2)
    say("full")
    # So the work goes to the one that joins, and then to the first when that has a place again.
    ray.get(ray.remote(num_cpus=2)(wait).remote(0))
    threading.Timer(15, lambda: ray.cancel(kept, force=True)).start()
    cluster.run_on_node(write, str(folder))
    say(f"left out: {cluster.label_selector()}")
"""


@pytest.mark.skipif(not can_hide(), reason="nobody may mount here")
def test_what_is_waited_for_is_said_and_a_node_that_joins_later_must_see_the_storage(
    tmp_path: Path,
) -> None:
    folder, log = tmp_path / "storage", tmp_path / "log"
    folder.mkdir()

    def said(words: str) -> bool:
        assert driver.poll() in (None, 0), log.read_text()
        return words in log.read_text()

    with (
        running_head(ENVIRONMENT, cpus=0) as head,
        running(head, ["-c", LATE, str(folder)], log) as driver,
    ):
        until(lambda: said("Waiting for 2 CPUs since"), "nothing is said")
        assert said("no node has them yet.")
        with running_node(head, 2):
            until(lambda: said("full"), "no first node")
            until(lambda: said("No longer waiting for 2 CPUs"), "the end of the wait is not said")
            assert said("planned: 4 CPUs and no GPU on 2 nodes, 1 of them to come")
            with running_node(head, 2, hidden=[folder]):
                assert driver.wait(300) == 0, log.read_text()
    assert said("left out: {'ray.io/node-id': '!in(")
    assert (folder / "written").read_text() == "on a node that sees it"
