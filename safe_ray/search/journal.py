"""The sweep's Optuna journal: one study a task, for `optuna-dashboard` and for later analysis.

The outcomes on disk are the truth and the journal follows them: a driver that was killed while it
wrote leaves at most a torn last line and a stale lock, which the next driver removes before it
adds what is missing.
"""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from safe_ray.search.space import SearchSpace, trials_of_bank
from safe_ray.training.job import BankOutcome

FILE_NAME = "optuna-journal.log"


class Journal:
    """Writes the finished banks of a sweep into Optuna studies.

    Args:
        folder: the sweep's folder, which the caller has locked against a second driver.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        _repair(path)
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        self._storage = JournalStorage(backend)
        self._studies: dict[str, optuna.Study] = {}
        self._written: dict[str, set[tuple[int, int, str]]] = {}

    def record(self, space: SearchSpace, outcome: BankOutcome, row_points: int) -> None:
        """Add the trials of a finished bank to its task's study; those already there stay."""
        study = self._study(outcome.task_id)
        written = self._written[outcome.task_id]
        for trial in trials_of_bank(space, outcome, row_points):
            attributes = trial.user_attrs
            point = f"{attributes['point']} {trial.params.get('alpha')}"
            key = (attributes["bank"], attributes["slot"], point)
            if key not in written:
                study.add_trial(trial)
                written.add(key)

    def _study(self, task_id: str) -> optuna.Study:
        if task_id not in self._studies:
            study = optuna.create_study(
                study_name=task_id,
                storage=self._storage,
                direction="maximize",
                load_if_exists=True,
            )
            self._studies[task_id] = study
            self._written[task_id] = {
                (
                    trial.user_attrs["bank"],
                    trial.user_attrs["slot"],
                    f"{trial.user_attrs['point']} {trial.params.get('alpha')}",
                )
                for trial in study.get_trials(deepcopy=False)
                if "point" in trial.user_attrs
            }
        return self._studies[task_id]


def _repair(path: Path) -> None:
    """Remove the lock and the torn last line that a killed writer may have left."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
