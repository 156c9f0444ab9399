"""How busy a machine is: what is measured, how much is kept, and that nothing waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from safe_ray.usage import MOST, Sample, Sampler, probe_of_machine


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_this_machine_is_measured_by_mlflows_names() -> None:
    probe = probe_of_machine()
    assert probe is not None
    values = probe()
    assert values.keys() >= {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "disk_usage_percentage",
        "process_memory_megabytes",
    }
    assert 0 < values["system_memory_usage_percentage"] < 100
    assert values["process_memory_megabytes"] > 10


def test_without_psutil_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert probe_of_machine() is None
    with Sampler(probe=None) as sampler:
        assert sampler.samples == ()


def test_samples_have_their_times_and_end_with_the_block() -> None:
    began, told = time.time(), []
    with Sampler(0.01, told.append, lambda: {"cpu": 1.0}) as sampler:
        until(lambda: len(sampler.samples) >= 3)
    kept = sampler.samples
    times = [sample.time for sample in kept]
    assert times == sorted(times)
    assert began - 0.01 <= times[0] <= time.time()
    assert told[-1] == kept
    assert kept[0] == Sample(times[0], {"cpu": 1.0})


def test_a_long_time_is_kept_at_a_coarser_grain() -> None:
    count = 0

    def probe() -> dict[str, float]:
        nonlocal count
        count += 1
        return {"count": float(count)}

    with Sampler(0.0005, probe=probe) as sampler:
        until(lambda: count > 5 * MOST)
    counts = [sample.values["count"] for sample in sampler.samples]
    assert len(counts) < MOST
    assert counts[-1] > 4 * MOST
    # From the beginning on, at even steps.
    assert counts[0] <= 16
    steps = {after - before for before, after in pairwise(counts)}
    assert len(steps) <= 2


def test_what_is_no_time_or_no_number_is_not_sound() -> None:
    assert Sample(1e9, {"cpu": 1.0}).is_sound
    assert not Sample(-1.0, {}).is_sound
    assert not Sample(1e300, {}).is_sound
    assert not Sample(1e9, {"cpu": float("nan")}).is_sound
