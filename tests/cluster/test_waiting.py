"""What Ray is asked for and no node gives is one line, at a pace that can be read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence

from ray.core.generated import autoscaler_pb2

from safe_ray.cluster.waiting import Demand, Waits, demand_of

NOON = time.mktime((2030, 1, 1, 12, 3, 10, 0, 0, -1))
TRIAL = (("CPU", 4.0), ("GPU", 1.0))
TASK = (("CPU", 1.0),)


def told(
    waits: Waits,
    seconds: Sequence[float],
    pending: Mapping[tuple[tuple[str, float], ...], int],
    nodes: Sequence[Mapping[str, float]] = (),
    elastic: bool = True,
) -> list[tuple[float, str]]:
    demand = Demand(pending, nodes)
    return [(at, line) for at in seconds for line in waits.see(demand, NOON + at, elastic)]


def test_one_line_says_what_is_waited_for_and_since_when():
    assert told(Waits(), [0, 5, 125], {TRIAL: 1}) == [
        (125, "Waiting for 1 GPU and 4 CPUs since 12:03:10 (2 min 05 s): no node has them yet.")
    ]
    assert told(Waits(), [0, 20], {TRIAL: 3}, elastic=False) == [
        (20, "Waiting for 3 GPUs and 12 CPUs since 12:03:10 (20 s): no node has them.")
    ]


def test_several_kinds_of_work_that_wait_alike_are_one_line():
    (line,) = told(Waits(), [0, 20], {TRIAL: 2, TASK: 3})
    assert "Waiting for 2 GPUs and 11 CPUs since" in line[1]


def test_it_is_said_less_and_less_often():
    at = [second for second, _ in told(Waits(), range(0, 7200, 3), {TRIAL: 1})]
    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert at[0] == 15
    assert pauses == sorted(pauses)
    assert 5 <= len(at) <= 10
    assert max(pauses) <= 1803


def test_work_that_waits_for_its_turn_is_not_soon_mentioned():
    large = [{"CPU": 8.0, "GPU": 1.0}]
    said = told(Waits(), range(0, 140, 3), {TRIAL: 1}, large)
    assert [at for at, _ in said] == [120]
    assert "the nodes that have them are at work" in said[0][1]


def test_the_end_of_a_wait_is_said_if_its_beginning_was():
    waits = Waits()
    told(waits, [0, 20], {TRIAL: 1, TASK: 1})
    assert told(waits, [60], {TASK: 1}) == [
        (60, "No longer waiting for 1 GPU and 4 CPUs (1 min 00 s).")
    ]
    short = Waits()
    told(short, [0, 6], {TRIAL: 1})
    assert told(short, [9], {}) == []


def test_work_that_moves_on_does_not_wait():
    waits = Waits()
    for second in range(0, 300, 3):
        assert not told(waits, [second], {TASK: 200 - second // 3})


def test_demand_is_read_from_what_rays_head_says():
    state = autoscaler_pb2.ClusterResourceState()
    for _ in range(2):
        each = state.pending_resource_requests.add(count=3)
        each.request.resources_bundle["CPU"] = 1.0
    gang = state.pending_gang_resource_requests.add()
    for _ in range(2):
        gang.requests.add().resources_bundle.update({"CPU": 4.0, "GPU": 1.0})
    state.node_states.add().total_resources.update({"CPU": 2.0})
    assert demand_of(state) == Demand({TASK: 6, TRIAL: 2}, [{"CPU": 2.0}])
