"""A cluster of a head without CPUs and nodes that come and go, and harm to them."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.clusters import BIN, Head, running_head, running_node
from tests.faults.lab import Impossible, Lab
from tests.faults.processes import kill_group
from tests.faults.world import PROJECT
from tests.hosts import Host, NoHosts, hosts

# The least that Ray takes. It holds what a tiny sweep has at a time, and not much more.
STORE_BYTES = 80_000_000
# A node that does not answer is given up after some 20 seconds instead of a minute.
_PATIENCE = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
}


_ATTEMPTS = 3
_ALIVE = "print(sum(node['Alive'] for node in ray.nodes()))"


@dataclass
class Node:
    """A node, of which there may be a process."""

    host: Host | None
    cpus: int
    label: str
    pid: int
    ends: ExitStack


@dataclass
class Cluster:
    """A cluster of processes on one machine, each node with a host of its own where that can be.

    Attributes:
        head: where jobs are submitted.
        places: the hosts, the head's first; empty where there are none.
        nodes: those that run.
    """

    head: Head
    places: list[Host]
    nodes: list[Node] = field(default_factory=list)

    def here(self, command: list[str]) -> list[str]:
        """Return the words that run a command on the head's host."""
        return self.places[0].here(command) if self.places else command

    def add(self, cpus: int = 1, memory: int = STORE_BYTES) -> Node:
        """Start a node, on a host that has none."""
        taken = {node.host.name for node in self.nodes if node.host}
        host = next((h for h in self.places[1:] if h.name not in taken), None)
        for attempt in range(_ATTEMPTS):
            ends, label = ExitStack(), secrets.token_hex(4)
            options = [f"--object-store-memory={memory}", f"--labels=safe-ray/test={label}"]
            try:
                pid = ends.enter_context(running_node(self.head, cpus, host=host, options=options))
            except AssertionError:
                # Ray gives a node 30 seconds to start, which a busy machine may not have.
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            self.nodes.append(Node(host, cpus, label, pid, ends))
            break
        return self.nodes[-1]

    def remove(self, node: Node) -> None:
        """Kill all processes of a node at once."""
        kill_group(node.pid)
        self.discard(node)

    def discard(self, node: Node) -> None:
        self.nodes.remove(node)
        node.ends.close()

    def start_again(self, node: Node) -> None:
        """Start a node again on its host, as whoever runs it does when its process has ended."""
        self.discard(node)
        self.add(node.cpus)

    def id_of(self, node: Node) -> str:
        """Return what Ray calls a node, by the label that it was started with."""
        return self.ask(
            "print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and"
            f" n['Labels'].get('safe-ray/test') == '{node.label}'))"
        )

    def ask(self, code: str) -> str:
        """Return what a driver on the head's host prints last."""
        connect = f"import ray\nray.init('{self.head.address}', log_to_driver=False)\n"
        done = subprocess.run(
            self.here([sys.executable, "-c", connect + code]),
            capture_output=True,
            text=True,
            timeout=300,
            cwd=PROJECT,
            env=self.head.environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.strip().rpartition("\n")[2]

    def wait_for(self, nodes: int, seconds: float = 240) -> None:
        """Wait until so many nodes beside the head are alive."""
        deadline = time.monotonic() + seconds
        while (alive := self.ask(_ALIVE)) != str(nodes + 1):
            assert time.monotonic() < deadline, f"{alive} nodes are alive"
            time.sleep(1)

    def drain(self, node: str, seconds: int) -> None:
        """Give notice that a node goes."""
        words = [
            *(str(BIN / "ray"), "drain-node", f"--address={self.head.address}"),
            *(f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message=the test takes it", f"--deadline-remaining-seconds={seconds}"),
        ]
        done = subprocess.run(
            self.here(words),
            capture_output=True,
            text=True,
            timeout=120,
            env=self.head.environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def end(self) -> None:
        for node in list(self.nodes):
            self.discard(node)


@contextlib.contextmanager
def cluster(environment: dict[str, str], places: int = 5) -> Iterator[Cluster]:
    """Start a head without CPUs, and end it with all nodes at the end of the block."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(hosts(places))
        except NoHosts:
            made = []
        head = stack.enter_context(
            running_head(
                {"OMP_NUM_THREADS": "1", **_PATIENCE, **environment},
                cpus=0,
                host=made[0] if made else None,
                options=[f"--object-store-memory={STORE_BYTES}"],
            )
        )
        running = Cluster(head, made)
        stack.callback(running.end)
        yield running


@contextlib.contextmanager
def three_nodes(lab: Lab) -> Iterator[None]:
    """Let the sweep join a cluster of a head and two nodes of one CPU."""
    with ExitStack() as stack:
        if lab.cluster is None:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="home-")))
            environment = {"RAY_AUTH_MODE": "disabled", "HOME": str(home)}
            lab.cluster = stack.enter_context(cluster(environment))
            stack.callback(lambda: setattr(lab, "cluster", None))
        running = lab.cluster
        for node in list(running.nodes):
            if node.host is not None:
                node.host.join()
        while len(running.nodes) < 2:
            running.add()
        running.wait_for(len(running.nodes))
        lab.overrides = [each for each in lab.overrides if "num_cpus" not in each]
        lab.environment["RAY_ADDRESS"] = running.head.address
        lab.environment |= {k: v for k, v in running.head.environment.items() if "AUTH" in k}
        lab.prefix = running.here
        yield


def three_hosts(lab: Lab) -> contextlib.AbstractContextManager[None]:
    """Return a scene of nodes that have hosts of their own."""
    try:
        with hosts(1):
            return three_nodes(lab)
    except NoHosts as error:
        raise Impossible(str(error)) from error


_EARLY = ("named", "one part", "two parts", "task written", "bank begun", "checkpoint", "one bank")


def _at_a_moment(lab: Lab) -> tuple[Cluster, Node]:
    """Wait for a moment, and return one node of several."""
    running = lab.cluster
    assert running is not None
    lab.reach(lab.random.choice(_EARLY))
    while len(running.nodes) < 2:
        running.add()
    time.sleep(lab.random.uniform(0, 1))
    return running, lab.random.choice(running.nodes)


def remove_node(lab: Lab) -> None:
    """All processes of a node are killed at once."""
    running, node = _at_a_moment(lab)
    running.remove(node)


def add_node(lab: Lab) -> None:
    """A node joins, and does what work there is."""
    running, _ = _at_a_moment(lab)
    running.add()


def drain_node(lab: Lab) -> None:
    """A node is given notice, and killed when its time is up."""
    running, node = _at_a_moment(lab)
    seconds = lab.random.randrange(2, 10)
    running.drain(running.id_of(node), seconds)
    time.sleep(seconds)
    running.remove(node)


def cut_off_node(lab: Lab) -> None:
    """A node's cable is unplugged for a while. Ray gives it up, and its own process there ends."""
    running, node = _at_a_moment(lab)
    assert node.host is not None
    node.host.cut_off()
    time.sleep(lab.cut_off_seconds)
    node.host.join()
    running.start_again(node)


_BALLAST = """
import numpy, time
kept = [ray.put(numpy.ones({size}, dtype=numpy.uint8)) for _ in range({count})]
print('full', flush=True)
time.sleep(3600)
"""


def fill_object_store(lab: Lab) -> None:
    """Another job keeps more objects on the head than its object store holds."""
    assert lab.cluster is not None
    size = lab.random.randrange(5, 30) * 1_000_000
    count = 3 * STORE_BYTES // size
    code = f"import ray\nray.init('{lab.cluster.head.address}', log_to_driver=False)\n"
    process = subprocess.Popen(
        lab.cluster.here([sys.executable, "-c", code + _BALLAST.format(size=size, count=count)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=lab.cluster.head.environment,
    )

    def end() -> None:
        process.kill()
        process.communicate()

    lab.always.append(end)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "full"
    spilled = list(Path(lab.cluster.head.temporary).rglob("ray_spilled_objects*/*"))
    assert spilled, "nothing was spilled"
