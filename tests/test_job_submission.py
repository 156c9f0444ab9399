"""`ray job submit -- python -m safe_ray.tune` to a head that runs elsewhere than the client."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.clusters import BIN, Head, Job, run_job, running_head

PROJECT = Path(__file__).parents[1]
RESULTS = "safe-ray-results"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(560)]


def submit(
    head: Head, config_dir: Path, sweep: str, *overrides: str, working_dir: bool = False
) -> Job:
    """Submit a sweep of one tiny task from the project's folder, and wait for its end."""
    entry_point = [
        *("python", "-m", "safe_ray.tune", "--config-dir", str(config_dir)),
        "backbone=tiny",
        "tasks.datasets=[shapes]",
        "tasks.shots=[1]",
        "tasks.seeds=[1]",
        "features.views=1",
        "search.candidates=2",
        "search.bank=2",
        "search.epochs=3",
        f"sweep={sweep}",
        *overrides,
    ]
    return run_job(head, entry_point, PROJECT, working_dir=working_dir)


def assert_succeeded(done: Job, storage: Path, sweep: str, home: Path) -> None:
    """The job ended well, its results are where they belong, and its log says where.

    The storage may be a network file system, where MLflow's database has no place: it lies on the
    own disk of the machine that the head runs on.
    """
    assert done.succeeded, done.log[-6000:]
    assert "SAFE minus zero-shot" in done.log
    folder = storage / "outputs" / sweep
    summary = json.loads((folder / "summary.json").read_text())
    assert [entry["dataset"] for entry in summary] == ["shapes"]
    assert str(folder / "summary.json") in done.log
    database = home / RESULTS / "mlflow.db"
    assert database.exists()
    assert f"mlflow ui --backend-store-uri sqlite:///{database}" in done.log
    assert "A server is better: name it with MLFLOW_TRACKING_URI" in done.log
    assert list((storage / "mlartifacts").rglob("head.safetensors"))
    # A log has lines, and what Ray says of itself.
    own = done.log.partition("Running entrypoint")[2]
    assert "\r" not in own
    assert "\x1b[" not in own
    assert "Connecting to existing Ray cluster" in done.log
    assert "safe-bank-000: 2 candidates" in done.log
    assert list((storage / "features").glob("*/part-*.arrow"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the user who runs the guarded head."""
    return tmp_path_factory.mktemp("home")


def heads(home: Path, **environment: str) -> Iterator[Head]:
    # A job that is stopped has a minute to end.
    wait = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with running_head({"HOME": str(home), **wait, **environment}) as head:
        yield head


@pytest.fixture
def open_head(tmp_path: Path) -> Iterator[Head]:
    (tmp_path / "home").mkdir()
    yield from heads(tmp_path / "home", RAY_AUTH_MODE="disabled")


@pytest.fixture(scope="module")
def guarded_head(home: Path) -> Iterator[Head]:
    yield from heads(home, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4)


def test_a_submitted_sweep_runs_on_the_cluster_it_was_sent_to(
    open_head: Head, tmp_path: Path, tiny_config_dir: Path
) -> None:
    done = submit(open_head, tiny_config_dir, "submitted", f"storage={tmp_path}", working_dir=True)
    assert_succeeded(done, tmp_path, "submitted", tmp_path / "home")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_job_keeps_its_results_in_the_home_folder_under_token_authentication(
    guarded_head: Head, home: Path, tiny_config_dir: Path
) -> None:
    done = submit(guarded_head, tiny_config_dir, "brought", working_dir=True)
    assert_succeeded(done, home / RESULTS, "brought", home)
    assert f"{BIN / 'mlflow'} ui --backend-store-uri" in done.log
    assert os.uname().nodename in done.log
    # Whoever has no token learns so from Ray, and nothing is started.
    stranger = {k: v for k, v in guarded_head.environment.items() if k != "RAY_AUTH_TOKEN"}
    refused = submit(Head(guarded_head.dashboard, stranger), tiny_config_dir, "stranger")
    assert not refused.succeeded
    assert not (home / RESULTS / "outputs" / "stranger").exists()


def test_a_stopped_job_leaves_its_sentence_in_the_log(
    guarded_head: Head, tmp_path: Path, tiny_config_dir: Path
) -> None:
    """Whoever has no token can neither stop it nor read its log."""
    environment = {**guarded_head.environment, "RAY_ADDRESS": guarded_head.dashboard}
    stranger = {k: v for k, v in environment.items() if k != "RAY_AUTH_TOKEN"}

    def job(*arguments: str, environment: dict[str, str] = environment, check: bool = True) -> str:
        return subprocess.run(
            [str(BIN / "ray"), "job", *arguments],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        ).stdout

    entry_point = [
        *("python", "-m", "safe_ray.tune", "--config-dir", str(tiny_config_dir)),
        *("backbone=tiny", "tasks.datasets=[shapes]", "tasks.shots=[1]", "tasks.seeds=[1]"),
        *("features.views=1", "search.candidates=2", "search.bank=1", "search.epochs=20000"),
        *(f"storage={tmp_path}", "sweep=stopped"),
    ]
    name = "a-job-to-stop"
    submitted = ("submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--")
    job(*submitted, *entry_point)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/stopped/banks/*/*/*/job.json")):
        assert time.monotonic() < deadline, job("logs", name)
        time.sleep(0.5)
    # A trial is being started, or is in training.
    for words in (("stop", name), ("logs", name)):
        assert "sweep=stopped" not in job(*words, environment=stranger, check=False)
    assert "RUNNING" in job("status", name)
    driver = driver_of(tmp_path)
    job("stop", "--no-wait", name)
    stopped = time.monotonic()
    while "nothing that was finished is lost" not in job("logs", name):
        assert time.monotonic() - stopped < 60
    # Ray would kill it after a minute here; by itself it takes no two seconds on an idle machine.
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - stopped < 50
        time.sleep(0.1)
    log = job("logs", name)
    assert "nothing that was finished is lost" in log
    assert "sweep=stopped" in log
    assert "Traceback" not in log
    assert "ended without a word" not in log
    assert not (tmp_path / "outputs" / "stopped" / ".owner.json").exists()
    deadline = time.monotonic() + 60
    while (held := reserved(guarded_head)) != []:
        assert time.monotonic() < deadline, held
        time.sleep(1)


def driver_of(storage: Path) -> psutil.Process:
    """The process of the sweep that writes to a storage folder, and not the shell around it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "safe_ray.tune" in words and f"storage={storage}" in words:
                return process
    raise AssertionError("there is no driver")


def reserved(head: Head) -> list[str]:
    """The placement groups of a cluster that are not removed."""
    code = (
        "import json, ray\n"
        f"ray.init('{head.address}', log_to_driver=False, logging_level='ERROR')\n"
        "groups = ray.util.placement_group_table().values()\n"
        "print(json.dumps([g['placement_group_id'] for g in groups if g['state'] != 'REMOVED']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: list[str] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
