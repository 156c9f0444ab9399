"""What Ray is asked for and no node gives, said in a line: else actors wait for ever in silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from safe_ray.cluster.nodes import is_elastic
from safe_ray.cluster.resources import counted
from safe_ray.progress import duration

POLL_SECONDS = 3.0
# Every piece of work waits for a moment; a node of a cloud comes within minutes.
FIRST_SECONDS = 15.0
# Where a node could hold it, it waits for its turn, as work does.
FIRST_SECONDS_IN_TURN = 120.0
LONGEST_PAUSE = 1800.0

Bundle = tuple[tuple[str, float], ...]
"""What is reserved at once, on one node: amounts by name, in the order of the names."""


@dataclass(frozen=True)
class Demand:
    """What is asked for at one moment, and what nodes there are.

    Attributes:
        pending: how often each bundle is waited for.
        nodes: all that each live node has, whether it is in use or not.
    """

    pending: Mapping[Bundle, int]
    nodes: Sequence[Mapping[str, float]]


@dataclass
class _Wait:
    since: float
    count: int
    told: float | None = None
    pause: float = 60.0


class Waits:
    """Decides what to say of demands that are looked at again and again.

    A wait begins when a bundle is first seen, and anew when fewer of it are waited for. It is said
    after a while, then again at growing distances, and once more when it is over.
    """

    def __init__(self) -> None:
        self._waits: dict[Bundle, _Wait] = {}

    def see(self, demand: Demand, now: float, elastic: bool) -> list[str]:
        """Return what to say now.

        Args:
            demand: at this moment.
            now: seconds since the epoch.
            elastic: whether an autoscaler may bring nodes.
        """
        said = []
        for bundle in [each for each in self._waits if each not in demand.pending]:
            wait = self._waits.pop(bundle)
            if wait.told is not None:
                waited = duration(now - wait.since)
                said.append(f"No longer waiting for {_spoken(bundle, wait.count)} ({waited}).")
        due: dict[tuple[bool, str], list[tuple[Bundle, int, float]]] = {}
        for bundle, count in demand.pending.items():
            wait = self._waits.setdefault(bundle, _Wait(now, count))
            if count < wait.count and wait.told is None:
                wait.since = now
            wait.count = count
            held = any(_holds(node, bundle) for node in demand.nodes)
            first = FIRST_SECONDS_IN_TURN if held else FIRST_SECONDS
            if now - wait.since < first:
                continue
            if wait.told is None or now - wait.told >= wait.pause:
                if wait.told is not None:
                    wait.pause = min(2 * wait.pause, LONGEST_PAUSE)
                wait.told = now
                clock = time.strftime("%H:%M:%S", time.localtime(wait.since))
                due.setdefault((held, clock), []).append((bundle, count, wait.since))
        for (held, clock), waits in due.items():
            total: dict[str, float] = {}
            for bundle, count, _ in waits:
                for name, amount in bundle:
                    total[name] = total.get(name, 0.0) + count * amount
            waited = duration(now - min(since for _, _, since in waits))
            if held:
                reason = "the nodes that have them are at work"
            else:
                reason = "no node has them yet" if elastic else "no node has them"
            said.append(
                f"Waiting for {_spoken(tuple(total.items()), 1)} since {clock} ({waited}): "
                f"{reason}."
            )
        return said


def _spoken(bundle: Bundle, count: int) -> str:
    amounts = {name: count * amount for name, amount in bundle}
    kinds = [counted(amounts[name], name) for name in ("GPU", "CPU") if amounts.get(name)]
    return " and ".join(kinds) or "a place"


def _holds(node: Mapping[str, float], bundle: Bundle) -> bool:
    return all(node.get(name, 0.0) + 1e-6 >= amount for name, amount in bundle)


class Waiting:
    """Watches, from `begin` to the end of the block, what Ray waits for, and says it.

    Args:
        say: is told each sentence, in a thread of its own.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(POLL_SECONDS)

    def begin(self) -> None:
        """Begin to watch the cluster that this process has joined."""
        if self._thread is not None:
            return
        ask = _asker()
        self._thread = threading.Thread(
            target=self._watch, args=(ask,), name="waiting", daemon=True
        )
        self._thread.start()

    def _watch(self, ask: Callable[[], Demand]) -> None:
        waits = Waits()
        while not self._over.wait(POLL_SECONDS):
            try:
                demand = ask()
            except Exception:
                # A head that is away is for those to report who need it; it may come back.
                continue
            for sentence in waits.see(demand, time.time(), is_elastic()):
                self._say(sentence)


def _asker() -> Callable[[], Demand]:
    """Return what asks the cluster's head; the imports are made by the thread that calls."""
    import ray
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2

    # Modules in C++ and of protocol buffers say nothing of what they hold.
    raylet: Any = _raylet
    messages: Any = autoscaler_pb2
    client = raylet.GcsClient(ray.get_runtime_context().gcs_address)

    def ask() -> Demand:
        reply = messages.GetClusterResourceStateReply()
        reply.ParseFromString(client.get_cluster_resource_state())
        return demand_of(reply.cluster_resource_state)

    return ask


def demand_of(state: Any) -> Demand:
    """Return what a `ClusterResourceState` of Ray's says."""
    pending: dict[Bundle, int] = {}
    for each in state.pending_resource_requests:
        _add(pending, each.request.resources_bundle, each.count)
    for group in state.pending_gang_resource_requests:
        for request in group.requests:
            _add(pending, request.resources_bundle, 1)
    # Dead nodes stay in the list for a while, and have nothing.
    nodes = [dict(node.total_resources) for node in state.node_states]
    return Demand(pending, nodes)


def _add(pending: dict[Bundle, int], bundle: Mapping[str, float], count: int) -> None:
    amounts = tuple(sorted((name, amount) for name, amount in bundle.items() if amount > 0))
    if amounts:
        pending[amounts] = pending.get(amounts, 0) + count
