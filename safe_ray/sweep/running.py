"""Banks that are being trained, and what there is to see of them in MLflow meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safe_ray.errors import DamagedFileError
from safe_ray.sweep.recording import Recording, candidate_name
from safe_ray.tracking.mlflow import Tracker
from safe_ray.tracking.times import Span, milliseconds
from safe_ray.training.diary import Diary
from safe_ray.training.job import BankJob


class RunningBanks:
    """Shows MLflow the candidates in training, whenever there is nothing else to write.

    It reads the diaries of the banks that were handed out and are not finished. What it writes is a
    part of what the finished bank's record writes, at the same times.

    Args:
        recording: of the sweep.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._jobs: dict[str, BankJob] = {}

    def begin(self, job: BankJob) -> None:
        """Show a bank from now on."""
        self._jobs[job.name] = job

    def end(self, job: BankJob) -> None:
        """Show a bank no longer: its record does."""
        self._jobs.pop(job.name, None)

    def take(self) -> list[BankJob]:
        """Return the banks that are shown, and show none of them any longer."""
        jobs = list(self._jobs.values())
        self._jobs.clear()
        return jobs

    def record(self, tracker: Tracker) -> None:
        """Write how far each bank has come."""
        for job in list(self._jobs.values()):
            try:
                diary = Diary.load(job.folder)
            except DamagedFileError:
                # The next one is whole; this one is not worth a word.
                continue
            if diary is not None and job.name in self._jobs:
                self._show(tracker, job, diary)

    def _show(self, tracker: Tracker, job: BankJob, diary: Diary) -> None:
        times = [round(1000 * epoch) for epoch in diary.epochs]
        for method in self._recording.groups[job.group].methods:
            for slot, values in enumerate(job.candidates):
                name = candidate_name(job, slot)
                losses = _known(diary.losses[slot]) if slot < len(diary.losses) else []
                tracker.log_candidate(
                    self._recording.label(job.task_id, method.name),
                    name,
                    name,
                    tags=self._recording.candidate_tags(job, method),
                    params=dict(values),
                    metrics={},
                    curves={"train_loss": losses} if losses else {},
                    head=None,
                    span=Span(began=milliseconds(diary.began)),
                    times={"train_loss": times},
                    running=True,
                )


def _known(losses: Sequence[float | None]) -> list[float]:
    return [math.nan if loss is None else loss for loss in losses]
