from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient, artifacts
from mlflow.entities import Run
from sqlalchemy import event
from sqlalchemy.engine import Engine

from safe_ray.errors import InputError
from safe_ray.specs import ALL_SHOTS
from safe_ray.tracking import runs as runs_module
from safe_ray.tracking.connection import AwayError
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.models import Candidate, model_name
from safe_ray.tracking.packing import Package
from safe_ray.tracking.times import Span

TASK = "foods-2shot-seed1"
MODEL = model_name("tiny", "foods", 2)
SYSTEMS = "first-systems"


def opened(uri: str, **options) -> Tracker:
    tracker = Tracker(uri, "first", "first", **options)
    tracker.open()
    return tracker


def winner(head: Path, accuracy: float = 0.5) -> Candidate:
    """A winner whose files alone are registered."""
    return Candidate(MODEL, None, head, {"validation_accuracy": accuracy})


def record(tracker: Tracker, head: Path, candidates: int = 3, accuracy: float = 0.5) -> str:
    """The calls of a small sweep: one task, some candidates, the winner."""
    tracker.log_system({"python": "3.11.7", "torch": "2.14.1"})
    tracker.start_task(TASK, TASK, {"dataset": "foods"}, {"shots": 2})
    for index in range(candidates):
        candidate(tracker, index, head)
    return tracker.finish_task(
        TASK, {"test_safe": 0.75}, {"best_lr": 1e-3}, head, winner(head, accuracy)
    )


def candidate(tracker: Tracker, index: int, head: Path | None, failed: bool = False) -> str:
    return tracker.log_candidate(
        TASK,
        f"bank-0-{index}",
        f"candidate {index}",
        {"dataset": "foods"},
        {"lr": 0.001, "epochs": 3},
        {"validation_accuracy": 0.5},
        {
            "train_loss": {1: 2.0, 2: 1.0, 3: 0.5},
            "validation_accuracy_over_alpha": [k / 100 for k in range(101)],
        },
        head,
        failed,
    )


def download(uri: str, target: Path, model: str = f"models:/{MODEL}@best") -> Path:
    """Fetch the winner as a person does, who sets MLflow's address for the whole process."""
    mlflow.set_tracking_uri(uri)
    target.mkdir()
    try:
        return Path(artifacts.download_artifacts(model, dst_path=str(target)))
    finally:
        mlflow.set_tracking_uri(None)


def all_runs(uri: str, experiment: str = "first") -> list[Run]:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id]))


def of_kind(runs: list[Run], kind: str) -> list[Run]:
    return [run for run in runs if run.data.tags["safe_ray.kind"] == kind]


def test_a_sweep_is_an_experiment_with_a_run_a_task_and_a_child_run_a_candidate(
    uri: str, head: Path
) -> None:
    run_id = record(opened(uri), head)

    runs = all_runs(uri)
    (task,), (system,) = of_kind(runs, "task"), all_runs(uri, SYSTEMS)
    children = of_kind(runs, "candidate")
    assert len(runs) == 4
    assert len(children) == 3
    assert system.data.params == {"python": "3.11.7", "torch": "2.14.1"}
    assert task.info.run_id == run_id
    assert "mlflow.parentRunId" not in task.data.tags
    assert task.data.params == {"shots": "2", "best_lr": "0.001"}
    assert task.data.metrics == {"test_safe": 0.75}
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.tags["safe_ray.sweep"] == "first" for run in runs)
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == run_id
        assert child.data.tags["safe_ray.task"] == TASK
        assert child.data.params == {"lr": "0.001", "epochs": "3"}
        assert child.data.metrics["validation_accuracy"] == 0.5


def test_curves_are_metrics_over_epochs_and_over_alpha(uri: str, head: Path) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})
    run_id = candidate(tracker, 0, head)

    client = MlflowClient(uri)
    loss = client.get_metric_history(run_id, "train_loss")
    row = client.get_metric_history(run_id, "validation_accuracy_over_alpha")
    assert [(point.step, point.value) for point in loss] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert {point.step: point.value for point in row} == {k: k / 100 for k in range(101)}


def test_long_curves_and_many_parameters_are_written_in_several_requests(uri: str) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {f"p{k}": k for k in range(230)})
    curve = [float(k) for k in range(2500)]
    run_id = tracker.log_candidate(TASK, "0", "0", {}, {"lr": 1}, {}, {"loss": curve}, None)

    client = MlflowClient(uri)
    assert len(client.get_run(tracker.run_id(TASK)).data.params) == 230
    assert sorted(p.value for p in client.get_metric_history(run_id, "loss")) == curve


def test_a_diverged_candidate_is_a_failed_run_that_keeps_its_nan(uri: str) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})
    losses = [1.0, math.nan, math.inf]
    run_id = tracker.log_candidate(TASK, "0", "0", {}, {}, {}, {"loss": losses}, None, failed=True)

    client = MlflowClient(uri)
    values = [point.value for point in client.get_metric_history(run_id, "loss")]
    assert client.get_run(run_id).info.status == "FAILED"
    assert values[0] == 1.0
    assert math.isnan(values[1])
    assert values[2] > 1e300


def test_the_winner_is_registered_and_comes_back_whole(
    uri: str, head: Path, tmp_path: Path
) -> None:
    run_id = record(opened(uri), head)

    folder = download(uri, tmp_path / "down")
    version = MlflowClient(uri).get_model_version_by_alias(MODEL, "best")
    assert {file.name for file in folder.iterdir()} == {"head.safetensors", "head.json"}
    assert (folder / "head.safetensors").read_bytes() == (head / "head.safetensors").read_bytes()
    assert version.run_id == run_id


def test_heads_on_the_same_disk_are_stored_once(uri: str, head: Path) -> None:
    record(opened(uri), head)
    # The sweep's own, those of the candidates, the task's, the registered version's.
    assert (head / "head.safetensors").stat().st_nlink == 1 + 3 + 1 + 1


@pytest.mark.parametrize(
    ("heads", "of_candidates", "of_winner"), [("all", 2, 2), ("best", 0, 2), ("none", 0, 0)]
)
def test_the_choice_of_heads_says_whose_are_stored(
    uri: str, head: Path, heads: str, of_candidates: int, of_winner: int
) -> None:
    tracker = opened(uri, heads=heads)
    run_id = record(tracker, head, candidates=1)
    client = MlflowClient(uri)
    (child,) = of_kind(all_runs(uri), "candidate")
    assert len(client.list_artifacts(child.info.run_id, "head")) == of_candidates
    assert len(client.list_artifacts(run_id, "head")) == of_winner
    assert len(client.search_registered_models()) == (1 if of_winner else 0)


def test_without_a_model_name_the_winner_is_stored_but_not_registered(uri: str, head: Path) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})
    run_id = tracker.finish_task(TASK, {}, {}, head, None)
    client = MlflowClient(uri)
    assert len(client.list_artifacts(run_id, "head")) == 2
    assert client.search_registered_models() == []


def snapshot(uri: str) -> object:
    """All that a person can see of the sweep, without ids and times."""
    client = MlflowClient(uri)
    runs = []
    for run in all_runs(uri) + all_runs(uri, SYSTEMS):
        curves = {
            key: sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
        }
        files = sorted(f.path for f in client.list_artifacts(run.info.run_id, "head"))
        name = run.info.run_name
        runs.append((name, run.info.status, sorted(run.data.params.items()), curves, files))
    versions = [str(v.version) for v in client.search_model_versions(f"name = '{MODEL}'")]
    best = client.get_model_version_by_alias(MODEL, "best")
    return sorted(runs, key=lambda run: run[0]), versions, str(best.version)


def test_the_same_calls_again_change_nothing(uri: str, head: Path) -> None:
    record(opened(uri), head)
    first = snapshot(uri)
    for _ in range(2):
        record(opened(uri), head)
        assert snapshot(uri) == first


# The writes of `record`: the experiment; that of the systems, and the system's run (4); the task's
# run (2); three of the candidate; the result, the registered model, its version, its alias, the end
# of the task.
WRITES = 1 + 4 + 2 + 3 + 5


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it, and nothing is tidied up."""


class _MortalClient(MlflowClient):
    """MLflow's own client, which dies before its n-th write."""

    lives = math.inf


def _mortal(name: str):
    def call(self, *arguments, **options):
        if type(self).lives <= 0:
            raise Killed
        type(self).lives -= 1
        return getattr(MlflowClient, name)(self, *arguments, **options)

    return call


for _name in (
    "create_experiment",
    "create_run",
    "log_batch",
    "set_terminated",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
):
    setattr(_MortalClient, _name, _mortal(_name))


@pytest.mark.slow
def test_killed_before_any_write_and_started_again_it_ends_the_same(
    uri: str, head: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(opened(uri), head, candidates=1)
    expected = snapshot(uri)
    database = Path(uri.removeprefix("sqlite:///"))

    monkeypatch.setattr("mlflow.MlflowClient", _MortalClient)
    deaths = 0
    for lives in range(100):
        shutil.copyfile(migrated, database)
        shutil.rmtree(database.parent / "mlartifacts", ignore_errors=True)
        _MortalClient.lives = lives
        try:
            record(opened(uri), head, candidates=1)
        except Killed:
            deaths += 1
            _MortalClient.lives = math.inf
            record(opened(uri), head, candidates=1)
            assert snapshot(uri) == expected, f"killed before write {lives}"
        else:
            break
    assert deaths == WRITES


def die_in_statement(number: int) -> None:
    """Make this process end by SIGKILL inside a transaction, after its n-th change of a table."""
    done = 0

    def count(connection, cursor, statement: str, *_) -> None:
        nonlocal done
        done += statement.startswith(("INSERT", "UPDATE"))
        if done == number:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "after_cursor_execute", count)


@pytest.mark.parametrize("statement", [20, 51])
def test_killed_in_a_transaction_and_started_again_it_ends_the_same(
    uri: str, head: Path, tmp_path: Path, migrated: Path, statement: int
) -> None:
    record(opened(uri), head, candidates=8)
    expected = snapshot(uri)
    other = tmp_path / "killed"
    other.mkdir()
    shutil.copyfile(migrated, other / "mlflow.db")
    killed_uri = f"sqlite:///{other}/mlflow.db"
    script = (
        "import sys; from pathlib import Path; from tests.tracking.test_mlflow import *;"
        "die_in_statement(int(sys.argv[3]));"
        "record(opened(sys.argv[1]), Path(sys.argv[2]), 8)"
    )
    driver = subprocess.run(
        [sys.executable, "-c", script, killed_uri, str(head), str(statement)],
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert driver.returncode == -signal.SIGKILL
    (task,) = of_kind(all_runs(killed_uri), "task")
    assert task.info.status == "RUNNING"
    written = of_kind(all_runs(killed_uri), "candidate")
    assert 1 <= len(written) < 8
    assert [run.info.status for run in written].count("RUNNING") <= 1

    record(opened(killed_uri), head, candidates=8)
    assert snapshot(killed_uri) == expected


def test_a_tasks_runs_are_looked_up_once_and_page_by_page(
    uri: str, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(opened(uri), head, candidates=7)
    monkeypatch.setattr(runs_module, "_RUNS_A_PAGE", 2)
    again = opened(uri)
    again.start_task(TASK, TASK, {}, {})
    before = again._candidates.get(TASK)
    for index in range(7):
        candidate(again, index, head)
    assert before is None
    assert len(again._candidates[TASK]) == 7
    assert len(of_kind(all_runs(uri), "candidate")) == 7


def another(head: Path, name: str, weights: bytes) -> Path:
    other = head.with_name(name)
    shutil.copytree(head, other)
    (other / "head.safetensors").write_bytes(weights)
    return other


def test_every_winner_is_a_version_and_best_is_what_validation_prefers(
    uri: str, head: Path, tmp_path: Path
) -> None:
    """Three winners of one task, of which the second is the best; nothing is deleted."""
    client = MlflowClient(uri)
    best = []
    for place, accuracy in enumerate((0.5, 0.75, 0.5)):
        own = another(head, f"own-{place}", f"weights {place}".encode())
        tracker = Tracker(uri, "first", f"sweep {place}")
        tracker.open()
        record(tracker, own, candidates=1, accuracy=accuracy)
        best.append(int(client.get_model_version_by_alias(MODEL, "best").version))
    versions = client.search_model_versions(f"name = '{MODEL}'")
    assert best == [1, 2, 2]
    assert len(versions) == 3
    folder = download(uri, tmp_path / "down")
    assert (folder / "head.safetensors").read_bytes() == b"weights 1"


def test_another_head_of_the_same_run_is_another_version_and_the_old_one_stays_whole(
    uri: str, head: Path, tmp_path: Path
) -> None:
    record(opened(uri), head)
    record(opened(uri), another(head, "other", b"other weights"), accuracy=0.6)
    client = MlflowClient(uri)
    old, new = sorted(
        client.search_model_versions(f"name = '{MODEL}'"), key=lambda each: int(each.version)
    )
    assert client.get_model_version_by_alias(MODEL, "best").version == new.version
    folder = download(uri, tmp_path / "down")
    assert (folder / "head.safetensors").read_bytes() == b"other weights"
    before = download(uri, tmp_path / "before", f"models:/{MODEL}/{old.version}")
    assert (before / "head.safetensors").read_bytes() == (head / "head.safetensors").read_bytes()
    # The first head's own file is untouched: artifacts are new links, never writes in place.
    assert (head / "head.safetensors").read_bytes().startswith(b"weights")


def test_what_somebody_else_has_made_best_is_replaced_by_what_says_how_good_it_is(
    uri: str, head: Path
) -> None:
    client = MlflowClient(uri)
    client.create_registered_model(MODEL)
    theirs = client.create_model_version(MODEL, source="file:///nowhere")
    client.set_registered_model_alias(MODEL, "best", theirs.version)
    record(opened(uri), head)
    assert client.get_model_version_by_alias(MODEL, "best").version != theirs.version
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2


def test_other_versions_of_the_system_get_a_run_of_their_own(uri: str) -> None:
    for torch_version in ("2.14.1", "2.15.0", "2.14.1"):
        opened(uri).log_system({"torch": torch_version})
    found = {run.data.params["torch"] for run in all_runs(uri, SYSTEMS)}
    assert found == {"2.14.1", "2.15.0"}
    assert len(all_runs(uri, SYSTEMS)) == 2


def test_a_page_is_an_artifact_of_the_run_of_the_system(uri: str, tmp_path: Path) -> None:
    page, facts = tmp_path / "report.html", {"torch": "2.14.1"}
    for content in ("first", "again"):
        page.write_text(content)
        tracker = opened(uri)
        tracker.log_system(facts)
        tracker.log_page(facts, page)
    [run] = all_runs(uri, SYSTEMS)
    assert run.info.status == "FINISHED"
    folder = artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=uri)
    assert Path(folder, "report.html").read_text() == "again"
    opened(uri).log_page(facts, tmp_path / "gone.html")


def test_the_environments_run_id_moves_nothing(
    uri: str, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    record(opened(uri), head)
    assert len(all_runs(uri)) == 4


def test_two_sweeps_of_one_experiment_stay_apart(uri: str, head: Path) -> None:
    for sweep in ("first", "it's another"):
        tracker = Tracker(uri, "shared", sweep)
        tracker.open()
        record(tracker, head, candidates=1)
    assert len(of_kind(all_runs(uri, "shared"), "task")) == 2


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(uri: str, head: Path) -> None:
    tracker = opened(uri)
    MlflowClient(uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        opened(uri)


def test_names_of_registered_models_fit_into_a_models_uri() -> None:
    assert model_name("my clip/1", "dtd:2@x", 16) == "safe_ray-my-clip-1-dtd-2-x-16shot"
    assert model_name("rn50", "birds", ALL_SHOTS) == "safe_ray-rn50-birds-all"


def test_a_new_database_is_set_up_without_a_word(tmp_path: Path) -> None:
    script = (
        "from safe_ray.tracking.mlflow import Tracker;"
        "Tracker('sqlite:///new/folder/mlflow.db', 'e', 's').open()"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "new" / "folder" / "mlflow.db").is_file()


@pytest.mark.slow
def test_sweeps_that_find_no_database_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from safe_ray.tracking.mlflow import Tracker\n"
        "tracker = Tracker(sys.argv[1], sys.argv[2], sys.argv[2])\n"
        "tracker.prepare()\n"
        "tracker.open()\n"
        "print(tracker.experiment_id)\n"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", code, uri, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second", "third")
    ]
    said = [process.communicate(timeout=280) for process in starting]
    assert [process.returncode for process in starting] == [0, 0, 0], said
    assert len({experiment for experiment, _ in said}) == 3


@pytest.fixture
def server(migrated: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    shutil.copyfile(migrated, tmp_path / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "stored")]
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                Tracker(uri, "first", "first").open()
                break
            except InputError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri, process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_real_server_gets_the_same_sweep_and_its_loss_is_told(
    server: tuple[str, subprocess.Popen[bytes]],
    head: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri, process = server
    tracker = opened(uri)
    record(tracker, head)
    assert capfd.readouterr().out == ""
    first = snapshot(uri)
    record(opened(uri), head)
    assert snapshot(uri) == first
    folder = download(uri, tmp_path / "down")
    assert (folder / "head.safetensors").read_bytes() == (head / "head.safetensors").read_bytes()
    assert "first" not in {file.name for file in tmp_path.iterdir()}

    packed = another(head, "packed", b"packed weights")
    better = Candidate(MODEL, Package(packed), packed, {"validation_accuracy": 0.9})
    tracker.finish_task(TASK, {"test_safe": 0.8}, {}, packed, better, step=9)
    folder = download(uri, tmp_path / "model")
    assert (folder / "MLmodel").is_file()
    assert (folder / "artifacts/head/head.safetensors").read_bytes() == b"packed weights"

    end(process)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(AwayError, match="see to it that it answers"):
        candidate(tracker, 99, head)


def test_a_sweep_begun_anew_has_runs_of_its_own_and_leaves_the_old_ones(
    uri: str, head: Path
) -> None:
    old = record(opened(uri, begun="monday"), head)
    new = record(opened(uri, begun="tuesday"), head, candidates=2)
    assert record(opened(uri, begun="tuesday"), head, candidates=2) == new
    runs = all_runs(uri)
    assert {run.info.run_id for run in of_kind(runs, "task")} == {old, new}
    parents = [run.data.tags["mlflow.parentRunId"] for run in of_kind(runs, "candidate")]
    assert (parents.count(old), parents.count(new)) == (3, 2)


def test_a_result_of_more_candidates_is_the_latest_even_if_it_is_lower(
    uri: str, head: Path
) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})
    tracker.finish_task(TASK, {"test_safe": 0.8}, {}, head, None, step=16)
    run_id = tracker.finish_task(TASK, {"test_safe": 0.7}, {}, head, None, step=64)
    tracker.finish_task(TASK, {"test_safe": 0.7}, {}, head, None, step=64)
    client = MlflowClient(uri)
    assert client.get_run(run_id).data.metrics["test_safe"] == 0.7
    history = client.get_metric_history(run_id, "test_safe")
    assert [(point.step, point.value) for point in history] == [(16, 0.8), (64, 0.7)]


def test_runs_and_points_have_the_times_at_which_things_were_done(uri: str, head: Path) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {}, span=Span(began=1_000))
    run_id = tracker.log_candidate(
        TASK,
        "0",
        "0",
        {},
        {},
        {"validation_accuracy": 0.5},
        {"train_loss": [3.0, 2.0]},
        None,
        span=Span(2_000, 5_000),
        times={"train_loss": [3_000, 4_000]},
    )
    tracker.finish_task(TASK, {"test_accuracy": 0.5}, {}, head, None, span=Span(ended=6_000))

    client = MlflowClient(uri)
    task, child = client.get_run(tracker.run_id(TASK)).info, client.get_run(run_id).info
    assert (task.start_time, task.end_time) == (1_000, 6_000)
    assert (child.start_time, child.end_time) == (2_000, 5_000)
    loss = client.get_metric_history(run_id, "train_loss")
    assert sorted(point.timestamp for point in loss) == [3_000, 4_000]
    (score,) = client.get_metric_history(run_id, "validation_accuracy")
    assert score.timestamp == 5_000


def test_a_candidate_in_training_is_a_run_that_grows_and_has_each_point_once(uri: str) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})

    def show(losses: list[float], **options) -> str:
        return tracker.log_candidate(
            TASK,
            "0",
            "0",
            {},
            {"lr": 0.1},
            {},
            {"train_loss": losses},
            None,
            times={"train_loss": [1_000 * (place + 1) for place in range(len(losses))]},
            **options,
        )

    client = MlflowClient(uri)
    run_id = show([], running=True)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).data.params == {"lr": "0.1"}
    show([3.0], running=True)
    show([3.0, 2.0], running=True)
    # A driver that was started anew does not know what was written before.
    tracker.close()
    tracker.open()
    show([3.0, 2.0], running=True)
    assert show([3.0, 2.0, 1.0]) == run_id
    history = client.get_metric_history(run_id, "train_loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_what_was_given_up_is_ended_and_a_later_sweep_completes_it(uri: str) -> None:
    tracker = opened(uri)
    tracker.start_task(TASK, TASK, {}, {})
    arguments = (TASK, "0", "0", {}, {}, {}, {}, None)
    run_id = tracker.log_candidate(*arguments, running=True)
    client = MlflowClient(uri)
    tracker.abandon_candidate(TASK, "0")
    assert client.get_run(run_id).info.status == "KILLED"
    assert tracker.log_candidate(*arguments) == run_id
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_experiment_opens_as_model_training_and_keeps_what_a_person_wrote(uri: str) -> None:
    opened(uri)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name("first")
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    assert found.tags["mlflow.experiment.primaryMetric.name"] == "validation_accuracy"
    assert found.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"
    assert 'tags.sweep = "<name>"' in found.tags["mlflow.note.content"]
    client.set_experiment_tag(found.experiment_id, "mlflow.note.content", "mine")
    opened(uri)
    assert client.get_experiment_by_name("first").tags["mlflow.note.content"] == "mine"
