"""Two DDP workers under Ray Train give the single worker's heads, and survive a worker's death."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.heads.artifact import load_head
from safe_ray.specs import HyperParameters
from safe_ray.training.distributed import shard_edges, train_with_workers
from safe_ray.training.job import CHECKPOINT, OUTCOME, BankJob, BankOutcome, run_bank
from tests.training.tasks import device, write_task

RESOURCES = {"CPU": 0.5}


@given(total=st.integers(0, 200), workers=st.integers(1, 9))
def test_shards_hold_every_row_once_and_differ_by_one_at_most(total: int, workers: int) -> None:
    edges = shard_edges(total, workers)
    assert (edges[0], edges[-1]) == (0, total)
    sizes = [after - before for before, after in itertools.pairwise(edges)]
    assert len(sizes) == workers
    assert sum(sizes) == total
    assert max(sizes) - min(sizes) <= 1


def assert_same_heads(first: BankJob, second: BankJob) -> None:
    one, two = BankOutcome.load(first.folder), BankOutcome.load(second.folder)
    assert one is not None
    assert two is not None
    for a, b in zip(one.candidates, two.candidates, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4)
        head, _ = load_head(first.folder / str(a.head))
        expected, _ = load_head(second.folder / str(b.head))
        for name, tensor in expected.items():
            assert torch.allclose(head[name], tensor, rtol=1e-3, atol=2e-5), name


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("pin", ["device", "stream"])
def test_two_workers_train_the_single_workers_heads(tmp_path: Path, pin: str) -> None:
    """19 support samples do not halve evenly, and none may be dropped."""
    alone = write_task(tmp_path / "one")
    run_bank(alone, device())
    job = write_task(tmp_path / "two", pin=pin, map_budget=2**20)
    train_with_workers(job, 2, RESOURCES, threads=1, max_failures=0)
    assert_same_heads(job, alone)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_dies_is_replaced_and_training_goes_on(tmp_path: Path) -> None:
    candidates = (HyperParameters(1e-4, 0.01, 400, 0.5),)
    alone = replace(write_task(tmp_path / "one"), candidates=candidates)
    run_bank(alone, device())
    job = replace(write_task(tmp_path / "two"), candidates=candidates, checkpoint_seconds=0.0)
    killed: list[int] = []

    def kill_a_worker() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (job.folder / CHECKPOINT).exists():
            threading.Event().wait(0.05)
        # The local Ray is a child of this process, so that no one else's workers are found.
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                killed.append(process.pid)
                os.kill(process.pid, signal.SIGKILL)
                return

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    train_with_workers(job, 2, RESOURCES, threads=1, max_failures=2)
    killer.join()
    assert killed, "no worker was found to kill"
    assert (job.folder / OUTCOME).exists()
    assert_same_heads(job, alone)
