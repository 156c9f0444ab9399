"""What a sweep survives: each ends with the report, or with a sentence and then with the report."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from safe_ray.config.sweep import EXPERIMENT
from safe_ray.files import read_record
from safe_ray.training.job import CHECKPOINT
from safe_ray.training.outcome import BankOutcome
from tests.mlflow_servers import end_server, start_server
from tests.sweep.commands import command, finished_banks, run, start, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FIRST, SECOND = "shapes-2shot-seed1", "shapes-2shot-seed2"


def comparable(storage: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in e.items() if k != "mlflow_run_id"} for e in summary_of(storage)]


def copied(storage: Path, target: Path) -> Path:
    """Return a copy of a finished sweep, with an MLflow of its own."""
    shutil.copytree(storage, target, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    return target


def bank(storage: Path, task: str, number: int) -> Path:
    return storage / "outputs" / "trial" / "banks" / task / "safe" / f"bank-{number:03d}"


def test_a_task_whose_candidates_all_diverged_does_not_keep_the_other_from_its_report(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    storage = copied(finished[0], tmp_path / "storage")
    for number in range(3):
        folder = bank(storage, SECOND, number)
        outcome = BankOutcome.load(folder)
        assert outcome is not None
        diverged = tuple(replace(each, failed=True, fits={}) for each in outcome.candidates)
        replace(outcome, candidates=diverged).save(folder)
    done = run(command(tiny_config_dir, weights, storage))
    assert done.returncode == 1, done.stderr[-3000:]
    assert "shapes" in done.stdout
    assert [entry["seed"] for entry in summary_of(storage)] == [1]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"safe_ray: 1 of 2 tasks without a result; {SECOND}: all of its 6 ")
    assert "search.lr" in last
    assert "Traceback" not in done.stderr


def test_damaged_files_are_made_anew_and_the_summary_is_the_same(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    storage = copied(finished[0], tmp_path / "storage")
    sweep = storage / "outputs" / "trial"
    torn = [
        bank(storage, FIRST, 1) / "outcome.json",
        sweep / "tasks" / FIRST / "task.json",
        sweep / "tasks" / SECOND / "classifier.safetensors",
        sweep / "pooling.safetensors",
    ]
    for file in torn:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    (winner,) = (sweep / e["head"] for e in summary_of(storage) if e["seed"] == 2)
    head = winner / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[len(content) // 2] ^= 0xFF
    head.write_bytes(content)

    done = run(command(tiny_config_dir, weights, storage))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{torn[0]} was damaged: its bank is trained again." in done.stderr
    assert f"{SECOND}: {head} " in done.stderr
    assert "the winner's bank is trained again" in done.stderr
    assert comparable(storage) == comparable(finished[0])
    for file in torn:
        if file.suffix == ".json":
            assert read_record(file) is not None
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    stored = storage / "mlartifacts"
    assert client.search_registered_models()
    assert all(file.read_bytes() != bytes(content) for file in stored.rglob("head.safetensors")), (
        "MLflow has kept the damaged head"
    )


def test_a_trials_process_that_is_killed_is_one_sentence(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    # Long enough to be killed in the middle, with a checkpoint to go on from.
    slow = ("search.epochs=2000", "training.checkpoint_seconds=0.5", "search.candidates=2")
    slow += ("tasks.seeds=[1]",)
    driver = start(command(tiny_config_dir, weights, tmp_path, *slow), tmp_path, until=0)
    checkpoint = bank(tmp_path, FIRST, 0) / CHECKPOINT
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert driver.poll() is None, "the sweep ended before its trial could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trial_process(driver.pid).kill()
    _, told = driver.communicate(timeout=280)
    assert driver.returncode == 0, told[-3000:]
    (line,) = (line for line in told.splitlines() if "died" in line)
    assert "its process died; it is tried again from its last checkpoint." in line
    assert line.startswith("shapes-2shot-seed")
    assert "Traceback" not in told
    assert len(finished_banks(tmp_path)) == 1


def trial_process(driver: int) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[:1] == ["ray::ImplicitFunc.train"]:
                    return process
        time.sleep(0.05)
    raise AssertionError("no trial is in training")


def test_a_dead_raylet_is_one_sentence_and_the_same_command_goes_on(
    finished: tuple[Path, str], tmp_path: Path, tiny_config_dir: Path, weights: Path
) -> None:
    arguments = command(tiny_config_dir, weights, tmp_path)
    driver = start(arguments, tmp_path, until=1)
    (raylet,) = (
        process
        for process in psutil.Process(driver.pid).children(recursive=True)
        if process.name() == "raylet"
    )
    raylet.kill()
    _, told = driver.communicate(timeout=120)
    assert driver.returncode == 1, told[-3000:]
    assert "Traceback" not in told
    last = told.strip().splitlines()[-1]
    assert "raylet" in last
    assert "sweep=trial" in last
    kept = finished_banks(tmp_path)

    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert kept.items() <= finished_banks(tmp_path).items()
    assert comparable(tmp_path) == comparable(finished[0])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_search_in_a_sentence(
    finished: tuple[Path, str],
    small_disk: Path,
    tmp_path: Path,
    tiny_config_dir: Path,
    weights: Path,
) -> None:
    arguments = command(
        tiny_config_dir, weights, small_disk, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    )
    driver = start(arguments, small_disk, until=1)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    _, told = driver.communicate(timeout=200)
    assert driver.returncode == 1, told[-3000:]
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if "No space left on device" in line]
    assert 1 <= len(lines) <= 2, told
    assert "free some space" in lines[-1]
    assert "search.lr" not in told
    kept = finished_banks(small_disk)

    ballast.unlink()
    resumed = run(arguments)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert kept.items() <= finished_banks(small_disk).items()
    assert comparable(small_disk) == comparable(finished[0])


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 240
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        assert time.monotonic() < deadline, "the MLflow server did not start"
        time.sleep(0.2)


def test_an_mlflow_server_that_is_lost_costs_no_result_and_gets_them_from_the_next_run(
    finished: tuple[Path, str],
    tmp_path: Path,
    tiny_config_dir: Path,
    weights: Path,
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = tmp_path / "storage"
    arguments = command(
        tiny_config_dir, weights, storage, f"tracking.uri=http://me:secret@127.0.0.1:{port}"
    )
    server = start_server(port, tmp_path)
    try:
        # Its port is open, and that is all: the sweep itself waits until it answers.
        wait_for(port)
        driver = start(arguments, storage, until=1)
        end_server(server)
        _, told = driver.communicate(timeout=280)
        assert driver.returncode == 0, told[-3000:]
        (sentence,) = (line for line in told.splitlines() if "MLflow" in line)
        assert f" http://me:***@127.0.0.1:{port} " in sentence
        assert "by the next run of this sweep" in sentence
        assert "secret" not in told
        assert "Traceback" not in told
        assert comparable(storage) == comparable(finished[0])

        server = start_server(port, tmp_path)
        wait_for(port)
        replayed = run(arguments)
        assert replayed.returncode == 0, replayed.stderr[-3000:]
        assert "could not" not in replayed.stderr
        client = MlflowClient(f"http://127.0.0.1:{port}")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        ended = [r.data.tags["safe_ray.kind"] for r in runs if r.info.status == "FINISHED"]
        assert (ended.count("task"), ended.count("candidate")) == (2, 12)
        assert {entry["mlflow_run_id"] for entry in summary_of(storage)} <= {
            run.info.run_id for run in runs
        }
    finally:
        end_server(server)


def test_json_in_the_folder_stays_readable(finished: tuple[Path, str]) -> None:
    """A record is plain JSON with one key more."""
    outcome = json.loads((bank(finished[0], FIRST, 0) / "outcome.json").read_text())
    assert outcome["task_id"] == FIRST
    assert len(outcome["candidates"]) == 2
