"""When a bank began, when each of its epochs ended, and what there is to see of it meanwhile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from safe_ray.errors import DamagedFileError
from safe_ray.files import write_record
from safe_ray.training.diary import DIARY, Diary
from safe_ray.training.job import run_bank
from safe_ray.training.outcome import BankOutcome
from tests.training.tasks import CANDIDATES, device, write_task

EPOCHS = 7
"""Of the longest candidate."""


class Stopped(Exception):
    """Stands for a process that dies after an epoch."""


def test_a_bank_says_when_it_began_and_ended_and_when_each_epoch_did(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    before = time.time()
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert len(outcome.epochs) == EPOCHS
    times = [before - 0.001, outcome.began, *outcome.epochs, outcome.ended, time.time() + 0.001]
    assert times == sorted(times)
    assert not (job.folder / DIARY).exists()


def test_a_bank_in_training_shows_the_epochs_of_its_last_checkpoint(tmp_path: Path) -> None:
    job = replace(write_task(tmp_path), checkpoint_seconds=0.0)
    seen: list[Diary] = []

    def look(share: float) -> None:
        diary = Diary.load(job.folder)
        assert diary is not None
        seen.append(diary)

    run_bank(job, device(), on_progress=look)
    assert len(seen) == EPOCHS
    for epochs, diary in enumerate(seen):
        # The checkpoint of this epoch is written after the look.
        assert len(diary.epochs) == epochs
        shown = [len(losses) for losses in diary.losses] or [0] * len(CANDIDATES)
        assert shown == [min(epochs, int(each["epochs"])) for each in CANDIDATES]


def test_a_bank_that_is_gone_on_with_keeps_its_times(tmp_path: Path) -> None:
    job = replace(write_task(tmp_path), checkpoint_seconds=0.0)

    def stop(share: float) -> None:
        if share > 0.5:
            raise Stopped

    with pytest.raises(Stopped):
        run_bank(job, device(), on_progress=stop)
    left = Diary.load(job.folder)
    assert left is not None
    assert len(left.epochs) == 3
    resumed = time.time()
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert outcome.began == left.began
    assert outcome.epochs[:3] == left.epochs
    assert all(each >= resumed - 0.001 for each in outcome.epochs[3:])
    assert len(outcome.epochs) == EPOCHS


def test_a_diary_of_other_candidates_or_a_damaged_one_is_begun_anew(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    Diary("another bank", 5.0, (6.0,)).save(job.folder)
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert outcome.began > 5.0

    write_record(tmp_path / DIARY, {"bank": "it", "began": -1.0})
    with pytest.raises(DamagedFileError):
        Diary.load(tmp_path)


def test_the_load_of_the_machine_is_kept_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(write_task(tmp_path), measured=True)
    monkeypatch.setattr("safe_ray.usage.Sampler.__init__.__defaults__", (0.005, None, None))
    run_bank(job, device())
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    assert outcome.usage
    assert all("cpu_utilization_percentage" in sample.values for sample in outcome.usage)
    assert all(outcome.began <= sample.time <= outcome.ended for sample in outcome.usage)
