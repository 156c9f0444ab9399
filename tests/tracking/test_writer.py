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


def test_a_lost_store_is_told_at_the_next_call_and_stops_the_writing(uri: str) -> None:
    writer = BackgroundTracker(Tracker(uri, "e", "s"))
    writer.open()
    writer.start_task("t", "t", {}, {})
    writer.flush()
    lose(uri)
    add(writer, 0)
    with pytest.raises(InputError, match=r"record the candidate 0 of t \(.*same sweep name"):
        writer.flush()
    with pytest.raises(InputError, match="candidate 0"):
        add(writer, 1)
    with pytest.raises(InputError, match="candidate 0"):
        writer.close()


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
