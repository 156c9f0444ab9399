"""What a sweep records in MLflow never stops it, whatever MLflow does, and comes in the end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from safe_ray.errors import InputError
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.writer import BackgroundTracker, Record
from tests.mlflow_servers import Door, running_server


def task(name: str = "t") -> Record:
    return lambda tracker: tracker.start_task(name, name, {}, {"shots": 1})


def candidate(index: int, losses: list[float] | None = None, task_id: str = "t") -> Record:
    def record(tracker: Tracker) -> None:
        curves = {"loss": losses if losses is not None else [1.0, 0.5]}
        tracker.log_candidate(task_id, str(index), f"c{index}", {}, {"lr": index}, {}, curves, None)

    return record


def result() -> Record:
    return lambda tracker: tracker.finish_task("t", {"test": 0.5}, {}, None, None)


def runs_of(uri: str, experiment: str) -> dict[str, Any]:
    """The runs of an experiment by name; none is there twice."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id])
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    return {run.info.run_name: run for run in runs}


WHOLE = {"t": "FINISHED", "c0": "FINISHED", "c1": "FINISHED", "c2": "FINISHED"}


def states(uri: str, experiment: str) -> dict[str, str]:
    return {name: run.info.status for name, run in runs_of(uri, experiment).items()}


def test_records_are_written_in_order_by_one_thread(uri: str) -> None:
    threads: set[int] = set()

    class Watched(Tracker):
        def log_candidate(self, *arguments, **options):
            threads.add(threading.get_ident())
            return super().log_candidate(*arguments, **options)

    with BackgroundTracker(Watched(uri, "e", "s")) as writer:
        writer.put(task())
        for index in range(10):
            writer.put(candidate(index))
        writer.flush()
        run_id = writer.run_id("t")
        children = MlflowClient(uri).search_runs(
            [writer.tracker.experiment_id], "tags.`safe_ray.kind` = 'candidate'"
        )
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert [run.info.run_name for run in children] == [f"c{index}" for index in range(9, -1, -1)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {run_id}


def test_leaving_the_block_writes_what_is_queued(uri: str) -> None:
    with BackgroundTracker(Tracker(uri, "e", "s")) as writer:
        writer.put(task())
        writer.put(candidate(0))
    assert writer.missing == 0
    assert set(runs_of(uri, "e")) == {"t", "c0"}
    assert writer.run_id("t") == runs_of(uri, "e")["t"].info.run_id


def lose(uri: str) -> None:
    """Make MLflow's database refuse every write, as a lost server does."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE runs RENAME TO gone")


def restore(uri: str) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE gone RENAME TO runs")


def test_a_lost_store_is_told_once_and_what_it_missed_is_counted(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append, "Again later.") as writer:
        writer.put(task())
        writer.flush()
        run_id = writer.run_id("t")
        lose(uri)
        writer.put(candidate(0))
        writer.flush()
        writer.put(candidate(1))
        writer.put(task("u"))
        assert writer.run_id("t") == run_id
        assert writer.run_id("u") is None
    (sentence,) = said
    assert "could not" in sentence
    assert sentence.endswith("Again later.")
    assert writer.missing == 3


def test_a_store_that_comes_back_gets_everything(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append) as writer:
        writer.put(task())
        writer.flush()
        lose(uri)
        writer.put(candidate(0))
        writer.flush()
        restore(uri)
        writer.put(candidate(1))
        wait_until(lambda: writer.missing == 0)
    assert writer.missing == 0
    assert set(runs_of(uri, "e")) == {"t", "c0", "c1"}
    away, back = said
    assert "could not" in away
    assert back.endswith("answers again.")


def wait_until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mistake_of_the_programs_own_costs_its_own_record_only(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append) as writer:
        # No run was started for it.
        writer.put(candidate(0))
        writer.put(task())
        writer.put(candidate(1))
    (sentence,) = said
    assert "ValueError" in sentence
    assert set(runs_of(uri, "e")) == {"t", "c1"}
    assert writer.missing == 1


def test_what_mlflow_refuses_is_left_out(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append) as writer:
        writer.put(task())
        writer.put(lambda t: t.start_task("bad", "bad", {}, {"a name with: a colon?": 1}))
        writer.put(candidate(0))
    (sentence,) = said
    assert "could not start the run of bad" in sentence
    assert "c0" in runs_of(uri, "e")
    assert writer.missing == 1


def test_after_an_interruption_nothing_is_waited_for(uri: str) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(Tracker):
        def start_task(self, *arguments, **options):
            started.set()
            go_on.wait(60)
            return super().start_task(*arguments, **options)

    def block() -> None:
        with BackgroundTracker(Slow(uri, "e", "s")) as writer:
            writer.put(task())
            started.wait(60)
            for index in range(3):
                writer.put(candidate(index))
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        block()
    assert not go_on.is_set()
    assert time.monotonic() - began < 30
    go_on.set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "mlflow-writer"])
    assert set(runs_of(uri, "e")) == {"t"}


def test_a_database_file_that_cannot_be_is_refused_unless_nobody_asked_for_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    bad = f"sqlite:///{tmp_path}/file/mlflow.db"
    with (
        pytest.raises(InputError, match="cannot be written"),
        BackgroundTracker(Tracker(bad, "e", "s")),
    ):
        pass
    said: list[str] = []
    with BackgroundTracker(Tracker(bad, "e", "s"), said.append, required=False) as writer:
        writer.put(task())
    (sentence,) = said
    assert "cannot be written" in sentence
    assert writer.missing == 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running_server(tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def door(server: int) -> Iterator[Door]:
    door = Door(server)
    yield door
    door.close()


def record_all(door: Door, experiment: str, said: list[str], patience: float = 20) -> int:
    """Record a small sweep, and return how much of it MLflow has not taken."""
    tracker = Tracker(door.uri, experiment, experiment)
    with BackgroundTracker(tracker, said.append, "Again later.", patience) as writer:
        writer.put(task())
        for index in range(3):
            writer.put(candidate(index))
        writer.put(result())
    return writer.missing


@pytest.mark.slow
def test_a_server_that_is_down_throughout_is_one_sentence_and_the_next_run_brings_all(
    door: Door,
) -> None:
    said: list[str] = []
    assert record_all(door, "down", said) > 0
    (sentence,) = said
    assert sentence.startswith(f"No MLflow server answers at {door.uri} (")
    assert sentence.endswith("Again later.")
    door.open()
    assert record_all(door, "down", said) == 0
    assert len(said) == 1
    assert states(door.uri, "down") == WHOLE


@pytest.mark.slow
def test_a_server_that_comes_later_gets_what_it_missed(door: Door) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(door.uri, "later", "later"), said.append) as writer:
        writer.put(task())
        door.open()
        for index in range(3):
            writer.put(candidate(index))
        writer.put(result())
        wait_until(lambda: writer.missing == 0)
    assert states(door.uri, "later") == WHOLE
    assert [sentence.endswith("answers again.") for sentence in said] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 2, 4, 7, 9, 11])
def test_a_server_that_goes_before_it_has_answered_is_told_nothing_twice(
    door: Door, write: int
) -> None:
    """It goes at one writing request after the other: the first creates the experiment."""
    experiment = f"goes-{write}"
    said: list[str] = []
    door.writes = write
    door.open()
    assert record_all(door, experiment, said) > 0
    (sentence,) = said
    assert sentence.endswith("Again later.")
    door.open()
    assert record_all(door, experiment, said) == 0
    assert states(door.uri, experiment) == WHOLE
    losses = runs_of(door.uri, experiment)["c1"].data.metrics["loss"]
    assert losses == 0.5


@pytest.mark.slow
def test_a_server_that_refuses_everybody_is_one_sentence(door: Door) -> None:
    said: list[str] = []
    door.denies = True
    door.open()
    assert record_all(door, "denied", said) > 0
    (sentence,) = said
    assert "refuses this client (status 403)" in sentence
    assert sentence.endswith("Again later.")
    door.denies = False
    assert record_all(door, "denied", said) == 0
    assert states(door.uri, "denied") == WHOLE


@pytest.mark.slow
def test_a_slow_server_is_not_waited_for_beyond_the_patience(door: Door) -> None:
    said: list[str] = []
    door.delay = 10.0
    door.open()
    began = time.monotonic()
    tracker = Tracker(door.uri, "slow", "slow")
    with BackgroundTracker(tracker, said.append, "Again later.", patience=2.0) as writer:
        opened = time.monotonic()
        assert opened - began < 9
        writer.put(task())
        writer.put(candidate(0))
        assert writer.run_id("t") is None
        assert time.monotonic() - opened < 2
    assert time.monotonic() - opened < 8
    assert writer.missing > 0
    (sentence,) = said
    assert "has not taken" in sentence
    door.delay = 0.0
    assert record_all(door, "slow", said) == 0
    assert states(door.uri, "slow") == WHOLE
