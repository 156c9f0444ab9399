from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from safe_ray.errors import InputError
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.writer import BackgroundTracker


def add(writer: BackgroundTracker, index: int, losses: list[float] | None = None) -> None:
    curves = {"loss": losses if losses is not None else [1.0, 0.5]}
    writer.log_candidate("t", str(index), f"c{index}", {}, {"lr": index}, {}, curves, None)


def test_what_is_queued_is_written_in_order_by_one_thread(uri: str) -> None:
    threads: set[int] = set()

    class Watched(Tracker):
        def log_candidate(self, *arguments, **options):
            threads.add(threading.get_ident())
            return super().log_candidate(*arguments, **options)

    with BackgroundTracker(Watched(uri, "e", "s")) as writer:
        writer.start_task("t", "t", {}, {})
        for index in range(10):
            add(writer, index)
        run_id = writer.run_id("t")
        writer.flush()
        children = MlflowClient(uri).search_runs(
            [writer.tracker.experiment_id], "tags.`safe_ray.kind` = 'candidate'"
        )
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert [run.info.run_name for run in children] == [f"c{index}" for index in range(9, -1, -1)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {run_id}


def test_leaving_the_block_writes_what_is_queued(uri: str) -> None:
    with BackgroundTracker(Tracker(uri, "e", "s")) as writer:
        writer.start_task("t", "t", {}, {})
        losses = [3.0, 2.0]
        add(writer, 0, losses)
        losses.append(1.0)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id], "tags.`safe_ray.kind` = 'candidate'")
    history = client.get_metric_history(runs[0].info.run_id, "loss")
    assert [point.value for point in history] == [3.0, 2.0]


def lose(uri: str) -> None:
    """Make MLflow's database refuse every write, as a lost server does."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("ALTER TABLE runs RENAME TO gone")


def test_a_lost_store_stops_the_writing_and_is_told_once(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append) as writer:
        writer.start_task("t", "t", {}, {})
        run_id = writer.run_id("t")
        lose(uri)
        add(writer, 0)
        writer.flush()
        add(writer, 1)
        writer.start_task("u", "u", {}, {})
        assert writer.run_id("t") == run_id
        assert writer.run_id("u") is None
    (sentence,) = said
    assert "could not record the candidate 0 of t (" in sentence
    assert "same sweep name" in sentence


def test_a_mistake_of_the_programs_own_does_not_cost_the_results_either(uri: str) -> None:
    said: list[str] = []
    with BackgroundTracker(Tracker(uri, "e", "s"), said.append) as writer:
        # No run was started for it.
        add(writer, 0)
    (sentence,) = said
    assert "ValueError" in sentence


def test_after_an_interruption_what_is_queued_is_dropped(uri: str) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Slow(Tracker):
        def start_task(self, *arguments, **options):
            started.set()
            go_on.wait(30)
            return super().start_task(*arguments, **options)

    def block() -> None:
        with BackgroundTracker(Slow(uri, "e", "s")) as writer:
            writer.start_task("t", "t", {}, {})
            started.wait(30)
            for index in range(3):
                add(writer, index)
            threading.Timer(0.5, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_an_error_of_the_block_is_the_one_that_is_raised(uri: str) -> None:
    def block() -> None:
        with BackgroundTracker(Tracker(uri, "e", "s")) as writer:
            writer.start_task("t", "t", {}, {})
            writer.flush()
            lose(uri)
            add(writer, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()


def test_a_wrong_address_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written"),
        BackgroundTracker(Tracker(f"sqlite:///{tmp_path}/file/mlflow.db", "e", "s")),
    ):
        pass
