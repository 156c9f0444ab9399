"""Harm to processes: workers, Ray's own process on a machine, and the driver."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable

import psutil

from tests.faults.lab import Lab
from tests.faults.world import MOMENTS, SECONDS, Ahead, Sweep

_TRIAL = re.compile(r"ray::ImplicitFunc\.train")
_EXTRACTION = re.compile(r"ray::.*(PartExtractor|decode_views)")
# A driver may be ended at any of them.
_ANY = MOMENTS


def _family(lab: Lab, sweep: Sweep) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for root in lab.roots or [sweep.process.pid]:
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(root).children(recursive=True)
    return found


def find(lab: Lab, sweep: Sweep, what: Callable[[psutil.Process], bool]) -> psutil.Process:
    """Return a process of Ray, by the seed if there are several, as soon as there is one.

    Raises:
        Ahead: the sweep has ended without it.
    """
    deadline = time.monotonic() + SECONDS
    while sweep.is_running and time.monotonic() < deadline:
        fitting = []
        for process in _family(lab, sweep):
            with contextlib.suppress(psutil.Error):
                if what(process):
                    fitting.append(process)
        if fitting:
            return lab.random.choice(sorted(fitting, key=lambda each: each.pid))
        time.sleep(0.02)
    raise Ahead(f"no such process: {sweep.said()[-2000:]}")


def _is_called(pattern: re.Pattern[str]) -> Callable[[psutil.Process], bool]:
    return lambda process: bool(pattern.match((process.cmdline() or [""])[0]))


def _kill_worker(lab: Lab, sweep: Sweep, pattern: re.Pattern[str], jitter: float) -> None:
    find(lab, sweep, _is_called(pattern))
    time.sleep(lab.random.uniform(0, jitter))
    find(lab, sweep, _is_called(pattern)).kill()


def kill_extraction_worker(lab: Lab) -> None:
    sweep = lab.reach("named")
    _kill_worker(lab, sweep, _EXTRACTION, 0.5)


def kill_training_worker(lab: Lab) -> None:
    # Banks take a second each: later there may be none left to die.
    sweep = lab.reach(lab.random.choice(["bank begun", "checkpoint"]))
    _kill_worker(lab, sweep, _TRIAL, 0.3)


def kill_evaluation_worker(lab: Lab) -> None:
    sweep = lab.reach("searched")
    _kill_worker(lab, sweep, _EXTRACTION, 0.5)


def kill_raylet(lab: Lab) -> None:
    sweep = lab.reach(lab.random.choice(_ANY[1:-1]))
    with contextlib.suppress(Ahead):
        find(lab, sweep, lambda process: process.name() == "raylet").kill()
    sweep.end()


def _signal_driver(lab: Lab, number: signal.Signals) -> Sweep:
    sweep = lab.reach(lab.random.choice(_ANY))
    time.sleep(lab.random.uniform(0, 2))
    sweep.process.send_signal(number)
    return sweep


def kill_driver(lab: Lab) -> None:
    assert _signal_driver(lab, signal.SIGKILL).end().status in (-signal.SIGKILL, 0)


def terminate_driver(lab: Lab) -> None:
    assert _signal_driver(lab, signal.SIGTERM).end().status in (130, -signal.SIGTERM, 0)


def interrupt_driver(lab: Lab) -> None:
    assert _signal_driver(lab, signal.SIGINT).end().status in (130, -signal.SIGINT, 0)


def kill_group(root: int) -> None:
    """Kill a node's processes at once, as a machine that loses its power does."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(root)
        family = [parent, *parent.children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
