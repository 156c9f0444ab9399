"""What MLflow hears of a sweep: by the sweep, late, or from `python -m safe_ray.track`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from safe_ray.config.sweep import EXPERIMENT
from safe_ray.files import read_record
from safe_ray.sweep.ownership import OWNER
from safe_ray.sweep.tracked import TRACKED
from tests.mlflow_servers import Door, free_port, running_server
from tests.sweep.commands import command, run, summary_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# One task, and one bank of two candidates.
SMALL = ("tasks.seeds=[1]", "search.candidates=2", "evaluation.targets=[]")
PLANTED = ("pl4nted-in-a-uri", "pl4nted-in-the-environment", "pl4nted-t0ken")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder) as port:
        yield port, folder


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, tiny_config_dir: Path, weights: Path
) -> Path:
    """A sweep that MLflow has heard all of, from itself: its storage folder."""
    storage = tmp_path_factory.mktemp("recorded")
    done = run(command(tiny_config_dir, weights, storage, *SMALL))
    assert done.returncode == 0, done.stderr[-3000:]
    return storage


@pytest.fixture
def door(server: tuple[int, Path]) -> Iterator[Door]:
    door = Door(server[0])
    yield door
    door.close()


def heard(uri: str, experiment: str = EXPERIMENT) -> dict[tuple[str, ...], Any]:
    """What MLflow has heard, without what differs from one recording to the next."""
    client = MlflowClient(uri, registry_uri=uri)
    both = [client.get_experiment_by_name(name) for name in (experiment, f"{experiment}-systems")]
    assert None not in both
    runs: dict[tuple[str, ...], Any] = {}
    for each in client.search_runs([e.experiment_id for e in both if e], max_results=1000):
        tags = each.data.tags
        key = (tags["safe_ray.kind"], tags.get("safe_ray.task", ""), each.info.run_name)
        assert key not in runs
        files = {file.path for file in client.list_artifacts(each.info.run_id, "head")}
        metrics = {
            name: [(point.step, point.value) for point in history]
            for name in each.data.metrics
            if (history := client.get_metric_history(each.info.run_id, name))
        }
        # What a machine was busy with is another thing each time.
        metrics = {name: points for name, points in metrics.items() if "system/" not in name}
        data = {(used.dataset.digest, used.tags[0].value) for used in each.inputs.dataset_inputs}
        # The command names the folder, and links an experiment that has another number there.
        note = re.sub(
            "python -m safe_ray.tune.*|/experiments/[0-9]+", "", tags.get("mlflow.note.content", "")
        )
        models = len(each.outputs.model_outputs) if each.outputs is not None else 0
        runs[key] = (each.info.status, each.data.params, metrics, files, data, note, models)
    for model in client.search_registered_models():
        version = client.get_model_version_by_alias(model.name, "best")
        runs["model", model.name] = version.tags["safe_ray.head"]
    return runs


def track(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safe_ray.track", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_sweep_is_recorded_from_its_files_as_it_was_by_itself(
    recorded: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "moved" / "elsewhere"
    shutil.copytree(recorded / "outputs" / "trial", sweep)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        done = track(str(sweep), f"tracking.uri={uri}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert uri in done.stdout
        assert heard(uri) == heard(f"sqlite:///{recorded}/mlflow.db")
    # The summary names the runs of the MLflow that was told last.
    ids = {each.info.run_id for each in runs_of(uri)}
    assert {entry["mlflow_run_id"] for entry in read_summary_of(sweep)} <= ids


def runs_of(uri: str) -> list[Any]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id]))


def read_summary_of(sweep: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((sweep / "summary.json").read_text())
    return entries


def test_a_recording_takes_settings_and_says_what_is_no_sweep(
    recorded: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "outputs" / "trial"
    shutil.copytree(recorded / "outputs" / "trial", sweep)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    settings = ("tracking.heads=none", "tracking.experiment=again")
    done = track(str(sweep), *settings, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr[-3000:]
    found = heard(uri, "again")
    assert {key[0] for key in found} == {"sweep", "task", "candidate"}
    assert all(not files for _, _, _, files, *_ in found.values())

    refusals = {
        ("/nowhere",): "/nowhere is not the folder of a sweep",
        (): "There is nothing to record",
        (str(sweep), "search.lr=1"): "'search.lr=1' is no setting of MLflow",
        (str(sweep), "tracking.url=1"): "Did you mean 'tracking.uri'",
        (str(sweep), f"tracking.uri=http://127.0.0.1:{free_port()}"): "No MLflow server answers",
    }
    for arguments, words in refusals.items():
        refused = track(*arguments)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) <= 2
    assert "usage: python -m safe_ray.track FOLDER" in track("--help").stdout


def test_a_slow_server_and_then_none_delay_no_report_lose_nothing_and_leave_no_secret(
    recorded: Path,
    server: tuple[int, Path],
    tmp_path: Path,
    tiny_config_dir: Path,
    weights: Path,
    door: Door,
) -> None:
    """MLflow takes ten seconds an answer; what it has not heard is brought when it is well.

    Secrets stand neither in the storage folder, nor in what is printed, nor in MLflow's database.
    """
    door.delay = 10.0
    door.open()
    uri = f"http://me:{PLANTED[0]}@127.0.0.1:{door.port}"
    secrets = {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": PLANTED[1],
        "RAY_AUTH_TOKEN": PLANTED[2] * 4,
        "HF_TOKEN": PLANTED[2],
    }
    arguments = command(tiny_config_dir, weights, tmp_path, *SMALL, "tracking.patience=3")
    done = subprocess.run(
        arguments,
        env={**os.environ, **secrets, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout + done.stderr
    assert "SAFE minus zero-shot" in done.stdout
    (sentence,) = (line for line in done.stderr.splitlines() if "MLflow" in line)
    # How far it got with such a server is a matter of the machine's speed.
    assert f"MLflow at http://me:***@127.0.0.1:{door.port} " in sentence
    assert re.search("has not taken|could not open the experiment", sentence)
    (line,) = (line for line in done.stdout.splitlines() if line.strip().startswith("record "))
    shown = re.search(r"python -m safe_ray\.track (\S+) ", line)
    assert shown is not None
    sweep = tmp_path / "outputs" / "trial"
    assert shown[1] == str(sweep)
    kept = {name: summary_of(tmp_path)[0][name] for name in ("best", "test")}
    assert kept == {name: summary_of(recorded)[0][name] for name in ("best", "test")}
    assert read_record(sweep / TRACKED) is not None

    door.close()
    # The password was not kept, so that it has to be given once more.
    forgotten = track(str(sweep))
    assert forgotten.returncode == 2
    assert "passwords are not kept" in forgotten.stderr
    away = track(str(sweep), f"tracking.uri={uri}", **secrets)
    assert away.returncode == 2
    assert f"No MLflow server answers at http://me:***@127.0.0.1:{door.port}" in away.stderr
    door.delay = 0.0
    door.open()
    brought = track(str(sweep), f"tracking.uri={uri}", **secrets)
    assert brought.returncode == 0, brought.stderr[-3000:]
    # Where the files are differs; what was trained, and what came of it, does not.
    assert heard(door.uri) == heard(f"sqlite:///{recorded}/mlflow.db")
    assert all(entry["mlflow_run_id"] for entry in summary_of(tmp_path))

    asked = run([*arguments, "--show-config", f"tracking.uri={uri}"])
    for command_line in (forgotten, away, brought, asked):
        said += command_line.stdout + command_line.stderr
    places = (tmp_path, server[1])
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    assert {"server.db", "config.json", TRACKED} <= {file.name for file in files}
    for secret in PLANTED:
        assert secret not in said
        assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_sigterm_ends_a_sweep_in_time_and_says_its_name_whatever_mlflow_does(
    tmp_path: Path, tiny_config_dir: Path, weights: Path, door: Door
) -> None:
    """MLflow takes longer for an answer than the program has."""
    door.delay = 25.0
    door.open()
    settings = ("search.epochs=20000", f"tracking.uri={door.uri}")
    arguments = [
        text
        for text in command(tiny_config_dir, weights, tmp_path, *SMALL, *settings)
        if not text.startswith("sweep=")
    ]
    driver = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("outputs/*/banks/*/*/*/job.json")):
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(driver.pid).children(recursive=True)
    agents = [process for process in family if process.name().endswith("Agent")]
    driver.send_signal(signal.SIGTERM)
    began = time.monotonic()
    _, told = driver.communicate(timeout=60)
    took = time.monotonic() - began
    assert driver.returncode == 130
    (folder,) = tmp_path.glob("outputs/tiny-*")
    assert f"to go on with it later, give the same command with sweep={folder.name}" in told
    assert "Interrupted; nothing that was finished is lost." in told
    assert "Traceback" not in told
    assert "ended without a word" not in told
    assert not (folder / OWNER).exists()
    # 1.5 s by its own clock; a busy machine may take longer to end a process.
    assert took < 10, took
    # Its Ray ends with it. Ray's agents first try for a minute to tell its GCS, which is gone.
    family = [process for process in family if process not in agents]
    gone, alive = psutil.wait_procs(family, timeout=60)
    assert gone
    assert alive == []
    bad = run([*arguments, "search.candidates=none"])
    assert bad.returncode == 2
