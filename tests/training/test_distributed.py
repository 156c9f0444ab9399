"""Two DDP workers under Ray Train give the single worker's heads, and survive a worker's death."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.train import TrainingFailedError

from safe_ray.heads.artifact import load_head
from safe_ray.training.distributed import DataParallel, shard_edges, train_with_workers
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import CHECKPOINT, BankJob, run_bank, support_shard
from safe_ray.training.outcome import OUTCOME, BankOutcome
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


def work(rank: int, job: BankJob, rendezvous: Path, told: Path) -> None:
    """One of two workers, with the sweep's folder as that worker sees it."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    facts = TaskFacts.load(job.task_folder)
    edges = shard_edges(len(facts.support), 2)
    shard = support_shard(job.task_folder, facts, device(), range(edges[rank], edges[rank + 1]))
    done: list[float] = []
    try:
        run_bank(job, device(), shard, DataParallel(device()), on_progress=done.append)
    except RuntimeError as error:
        (told / f"error-{rank}").write_text(str(error))
    (told / f"progress-{rank}").write_text(json.dumps(done))
    # A process that ends while gloo's threads still run is aborted.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run_two(jobs: tuple[BankJob, BankJob], folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=work, args=(rank, job, folder / "rendezvous", folder), daemon=True)
        for rank, job in enumerate(jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]


def interrupted_after(job: BankJob, epoch: int) -> None:
    """Leave the checkpoint of a bank that stopped after so many epochs."""
    job = replace(job, checkpoint_seconds=0.0)

    def stop(share: float) -> None:
        if share * max(c["epochs"] for c in job.candidates) > epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bank(job, device(), on_progress=stop)


def seen_by_another(job: BankJob, folder: Path) -> BankJob:
    """Return the same job on a copy of the sweep's folder, which can be made to differ."""
    shutil.copytree(job.sweep, folder)
    return replace(job, sweep=str(folder))


@pytest.mark.parametrize("other", ["nothing", "older", "finished"])
def test_workers_go_on_from_what_the_first_one_sees(tmp_path: Path, other: str) -> None:
    """Storage may show the second worker no checkpoint, an older one, or an outcome."""
    alone = write_task(tmp_path / "one")
    run_bank(alone, device())
    job = write_task(tmp_path / "two")
    second = seen_by_another(job, tmp_path / "second")
    interrupted_after(job, 3)
    if other == "older":
        interrupted_after(second, 1)
    elif other == "finished":
        run_bank(second, device())
    run_two((job, second), tmp_path)
    progress = [json.loads((tmp_path / f"progress-{rank}").read_text()) for rank in range(2)]
    assert progress[0] == progress[1] == [epoch / 7 for epoch in range(4, 8)]
    assert_same_heads(job, alone)


def test_workers_do_nothing_about_a_bank_that_the_first_one_sees_finished(tmp_path: Path) -> None:
    job = write_task(tmp_path / "two")
    second = seen_by_another(job, tmp_path / "second")
    run_bank(job, device())
    run_two((job, second), tmp_path)
    assert [(tmp_path / f"progress-{rank}").read_text() for rank in range(2)] == ["[]", "[]"]
    assert not (second.folder / OUTCOME).exists()


def test_workers_that_were_given_different_banks_refuse_both(tmp_path: Path) -> None:
    job = write_task(tmp_path / "two")
    run_two((job, replace(job, candidates=job.candidates[:2])), tmp_path)
    for rank in range(2):
        assert (
            "1 of 2 workers would train something else" in (tmp_path / f"error-{rank}").read_text()
        )
    assert not (job.folder / OUTCOME).exists()


def assert_same_heads(first: BankJob, second: BankJob) -> None:
    one, two = BankOutcome.load(first.folder), BankOutcome.load(second.folder)
    assert one is not None
    assert two is not None
    for a, b in zip(one.candidates, two.candidates, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-4)
        head, _ = load_head(first.folder / str(a.fits["safe"].head))
        expected, _ = load_head(second.folder / str(b.fits["safe"].head))
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
    train_with_workers(job, 2, RESOURCES, threads=1)
    assert_same_heads(job, alone)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_dies_ends_the_training_which_goes_on_when_it_is_tried_again(
    tmp_path: Path,
) -> None:
    """Who calls decides whether it is, so that failures are counted in one place."""
    candidates = ({"lr": 1e-4, "weight_decay": 0.01, "epochs": 400},)
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
    with pytest.raises(TrainingFailedError):
        train_with_workers(job, 2, RESOURCES, threads=1)
    killer.join()
    assert killed, "no worker was found to kill"
    assert (job.folder / CHECKPOINT).exists()
    train_with_workers(job, 2, RESOURCES, threads=1)
    assert (job.folder / OUTCOME).exists()
    assert_same_heads(job, alone)
