"""What the tracker and the summary are told of a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from safe_ray.sweep.recording import Recording, result_of
from safe_ray.sweep.running import RunningBanks
from safe_ray.sweep.testing import TaskTest, TestOutcome
from safe_ray.sweep.tracked import Tracked
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.source import COMMAND
from safe_ray.training.facts import TaskFacts
from safe_ray.training.job import BankJob, run_bank
from tests.heads.test_bank import CLASSES
from tests.report.results import result
from tests.training.tasks import device, write_task


def outcome(right: list[bool], confidence: list[float]) -> TestOutcome:
    labels = np.array([0, 0, 0, 0, 1])
    said = np.where(right, labels, labels + 1)
    return TestOutcome(said, np.array(confidence, np.float32), labels, classes=3)


def test_the_accuracies_of_a_method_stand_beside_those_of_zero_shot() -> None:
    test = TaskTest(
        outcome([True, True, True, True, False], [0.9] * 5),
        {"safe": outcome([True, True, False, False, True], [0.3, 0.7, 0.7, 0.3, 0.7])},
    )
    result = result_of(test, "safe")
    assert result.accuracy == {"zero_shot": 0.8, "safe": 0.6}
    # A class without test samples has no say.
    assert result.mean_per_class == {"zero_shot": 0.5, "safe": 0.75}
    assert result.samples == 5
    # Two samples at 0.3 of which one is right, three at 0.7 of which two are.
    expected = (abs(1 - 0.6) + abs(2 - 2.1)) / 5
    assert result.ece == {"zero_shot": pytest.approx(0.1), "safe": pytest.approx(expected)}


def test_zero_shot_as_a_method_of_its_own_is_one_number() -> None:
    same = outcome([True, True, True, True, False], [0.9] * 5)
    assert result_of(TaskTest(same, {"zero_shot": same}), "zero_shot").accuracy == {
        "zero_shot": 0.8
    }


CARD: dict[str, Any] = {
    "backbone": {"name": "tiny"},
    "dataset": "shapes",
    "shots": 3,
    "seed": 1,
    "class_names": [f"class {i}" for i in range(CLASSES)],
    "templates": ["{}"],
    "prompts": "single",
    "logit_scale": 20.0,
    "preprocessing": {},
    "episode": {
        "digest": "e" * 64,
        "convention": "coop",
        "train_digest": "a" * 64,
        "validation_digest": "b" * 64,
    },
}


@dataclass
class Sweep:
    """A sweep of one task on disk, as its driver makes it, and its copies in MLflow."""

    uri: str
    job: BankJob
    recording: Recording
    origin: Mapping[str, str]

    def tracker(self, experiment: str) -> Tracker:
        tracker = Tracker(self.uri, experiment, "first", begun="today", source=self.origin)
        tracker.open()
        return tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('recorded')}/mlflow.db"


@pytest.fixture
def sweep(tmp_path: Path, uri: str) -> Sweep:
    job = replace(write_task(tmp_path, card=CARD), checkpoint_seconds=0.0, measured=True)
    origin = {"mlflow.source.name": "safe_ray.tune", COMMAND: "python -m safe_ray.tune"}
    tracked = Tracked(
        sweep="first",
        uri="",
        experiment="shared",
        heads="all",
        register=True,
        refit=False,
        tasks=(job.task_id,),
        systems=({"python": "3.11"},),
        models="none",
        origin=origin,
        data={"shapes": {"source": "/data/shapes", "test": "c" * 64}},
    )
    facts = {job.task_id: TaskFacts.load(job.task_folder)}
    return Sweep(uri, job, Recording(Path(job.sweep), tracked, facts), origin)


def heard(tracker: Tracker) -> dict[str, Any]:
    """What MLflow has heard of the candidates, with all times."""
    client = MlflowClient(tracker.uri)
    runs = client.search_runs([tracker.experiment_id], "tags.`safe_ray.kind` = 'candidate'")
    return {
        run.info.run_name: (
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            run.data.params,
            {
                name: sorted(
                    (point.step, point.timestamp, point.value)
                    for point in client.get_metric_history(run.info.run_id, name)
                )
                for name in run.data.metrics
            },
        )
        for run in runs
    }


@pytest.mark.slow
def test_a_bank_is_seen_while_it_trains_and_is_the_same_when_it_is_recorded_late(
    sweep: Sweep,
) -> None:
    tracker, job = sweep.tracker("live"), sweep.job
    for record in sweep.recording.tasks():
        record(tracker)
    running = RunningBanks(sweep.recording)
    running.begin(job)
    seen: list[dict[str, Any]] = []

    def look(share: float) -> None:
        running.record(tracker)
        seen.append(heard(tracker))

    run_bank(job, device(), on_progress=look)
    assert {status for status, *_ in seen[0].values()} == {"RUNNING"}
    first = "bank-000-candidate-00"
    assert seen[0][first][3] == {name: str(value) for name, value in job.candidates[0].items()}
    losses = [len(each[first][4].get("train_loss", ())) for each in seen]
    # It has four epochs, and each is seen with the checkpoint after it.
    assert losses == [0, 1, 2, 3, 4, 4, 4]

    running.end(job)
    sweep.recording.bank(job)(tracker)
    later = sweep.tracker("late")
    for record in (*sweep.recording.tasks(), *sweep.recording.banks()):
        record(later)
    assert heard(tracker) == heard(later)
    assert {status for status, *_ in heard(later).values()} == {"FINISHED"}


@pytest.mark.slow
def test_a_result_says_how_its_winner_is_used_and_how_the_sweep_goes_on(sweep: Sweep) -> None:
    run_bank(sweep.job, device())
    tracker = sweep.tracker("result")
    for record in (*sweep.recording.tasks(), *sweep.recording.banks()):
        record(tracker)
    head = (sweep.job.folder / "candidate-00-safe").relative_to(sweep.job.sweep)
    entry = replace(result("shapes", shots=3), head=head.as_posix())
    sweep.recording.result(entry)(tracker)

    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id(sweep.job.task_id))
    note = run.data.tags["mlflow.note.content"]
    assert "| accuracy | 50.0% | 60.0% |" in note
    assert 'load_model("models:/safe_ray-tiny-shapes-3shot@best")' in note
    assert "python -m safe_ray.tune sweep=first" in note
    assert f"#/experiments/{tracker.experiment_id}/runs?searchFilter=tags.sweep" in note
    assert run.data.metrics["test_accuracy"] == pytest.approx(0.6)
    assert run.data.metrics["test_gain"] == pytest.approx(0.1)
    used = {(d.dataset.digest[0], d.tags[0].value) for d in run.inputs.dataset_inputs}
    assert used == {("a", "train"), ("b", "validation"), ("c", "test")}
    version = client.get_model_version_by_alias("safe_ray-tiny-shapes-3shot", "best")
    assert float(version.tags["validation_accuracy"]) == 0.625
    children = client.search_runs([tracker.experiment_id], "tags.`safe_ray.kind` = 'candidate'")
    assert run.info.start_time == min(child.info.start_time for child in children)
    assert run.info.end_time == max(child.info.end_time for child in children)
