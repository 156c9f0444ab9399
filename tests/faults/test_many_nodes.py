"""A head and two nodes, each with an address of its own: where the work goes, and jobs by token."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.clusters import Job, run_job
from tests.faults.catalogue import ON_NODES, kinds_of
from tests.faults.lab import Impossible, Lab, inject
from tests.faults.nodes import Cluster
from tests.faults.world import PROJECT, SETTINGS, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_SECONDS = 900.0
_WORK = {
    "extraction": re.compile(r"ray::.*PartExtractor"),
    "trial": re.compile(r"ray::ImplicitFunc\.train"),
    "worker": re.compile(r"ray::.*RayTrainWorker"),
}


def entry_point(world: World, sweep: str, *overrides: str) -> list[str]:
    return [
        *("python", "-m", "safe_ray.tune", "--config-dir", str(world.folder / "conf")),
        *(*SETTINGS, f"backbone.pretrained={world.weights}", f"sweep={sweep}", *overrides),
    ]


class Watch:
    """Sees on which nodes what kind of process is at work.

    Attributes:
        seen: each kind of work with the nodes that have done it.
        together: each kind of work with the most nodes that have done it at one moment.
    """

    def __init__(self, nodes: Cluster) -> None:
        self._nodes = nodes
        self.seen: dict[str, set[int]] = {kind: set() for kind in _WORK}
        self.together = dict.fromkeys(_WORK, 0)

    def look(self) -> None:
        now: dict[str, set[int]] = {kind: set() for kind in _WORK}
        for number, node in enumerate(self._nodes.nodes):
            for title in _titles(node.pid):
                for kind, pattern in _WORK.items():
                    if pattern.match(title):
                        now[kind].add(number)
        for kind, where in now.items():
            self.seen[kind] |= where
            self.together[kind] = max(self.together[kind], len(where))

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _titles(node: int) -> Iterator[str]:
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(node).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                yield (process.cmdline() or [""])[0]


def submit_at_once(nodes: Cluster, commands: list[list[str]]) -> list[Job]:
    """Submit several jobs and wait for all of them."""
    done: dict[int, Job] = {}

    def submit(number: int, command: list[str]) -> None:
        done[number] = run_job(nodes.head, command, PROJECT, seconds=_SECONDS)

    threads = [threading.Thread(target=submit, args=each) for each in enumerate(commands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [done[number] for number in range(len(commands))]


def test_two_jobs_at_once_use_all_nodes_and_find_the_undisturbed_heads(
    nodes: Cluster, world: World, home: Path
) -> None:
    """One trains each bank in a process, the other with a worker on each node, over gloo."""
    watch = Watch(nodes)
    with watch.looking():
        plain, shared = submit_at_once(
            nodes,
            [
                # One extractor would do for so few images.
                entry_point(world, "plain", "features.actors=2"),
                entry_point(
                    *(world, "shared", "training.workers=2", "search.candidates=2"),
                    *("tasks.seeds=[1]", f"features.store={world.undisturbed / 'features'}"),
                ),
            ],
        )
    assert plain.succeeded, plain.log[-6000:]
    assert shared.succeeded, shared.log[-6000:]
    assert len(watch.seen["extraction"]) == 2, "the extraction stayed on one node"
    assert len(watch.seen["trial"]) == 2, "the search stayed on one node"
    assert watch.together["worker"] == 2, "the workers of a bank did not stand on two nodes"

    outputs = home / "safe-ray-results" / "outputs"
    entries = json.loads((outputs / "plain" / "summary.json").read_text())
    mine = [{k: v for k, v in entry.items() if k != "mlflow_run_id"} for entry in entries]
    assert mine == world.summary
    bank = Path("banks/shapes-2shot-seed1/safe/bank-000/outcome.json")
    alone, together = (
        json.loads((outputs / name / bank).read_text()) for name in ("plain", "shared")
    )
    for one, two in zip(alone["candidates"], together["candidates"], strict=True):
        assert two["values"] == one["values"]
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)


def test_a_job_that_is_refused_leaves_a_sentence_and_nothing_else(
    nodes: Cluster, world: World, home: Path
) -> None:
    done = run_job(nodes.head, entry_point(world, "refused", "tasks.shots=[0]"), PROJECT)
    assert not done.succeeded
    said = {line for line in done.log.splitlines() if line.startswith("safe_ray:")}
    assert len(said) == 1, done.log[-3000:]
    assert "tasks.shots" in next(iter(said))
    assert "Traceback" not in done.log
    assert not (home / "safe-ray-results" / "outputs" / "refused").exists()


def test_nothing_is_lost_while_nodes_come_and_go(
    nodes: Cluster, world: World, tmp_path: Path
) -> None:
    lab = Lab(world, tmp_path, random.Random(0), cluster=nodes, cut_off_seconds=30.0)
    try:
        inject(lab, *kinds_of(ON_NODES))
    except Impossible as reason:
        pytest.skip(str(reason))
