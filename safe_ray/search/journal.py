"""The sweep's Optuna journal: a study a task and group of methods, for `optuna-dashboard`.

The outcomes on disk are the truth and the journal follows them: a driver that was killed while it
wrote leaves at most a torn last line and a stale lock, which the next driver removes before it
adds what is missing.

Optuna's own storage would keep every trial of every study in memory, and wait for the disk after
each. So a bank's entries are made in a storage of their own, which is forgotten, and go to the file
at once.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial

from safe_ray.outside import GIB, read_file
from safe_ray.search.space import SearchSpace, trials_of_bank
from safe_ray.training.outcome import BankOutcome

FILE_NAME = "optuna-journal.log"
LARGEST = 2 * GIB

_Entry = dict[str, Any]


def study_name(task_id: str, group: str) -> str:
    """Return what the study of a task and a group of methods is called."""
    return f"{task_id}-{group}"


class Journal:
    """Writes the finished banks of a sweep into Optuna studies.

    A file that cannot be written any more, on a full disk, is let be for the rest of the run.

    Args:
        folder: the sweep's folder, which the caller has locked against a second driver.
        say: is told once that the file is incomplete.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda sentence: None) -> None:
        self._say = say
        self._lost = False
        self._path = folder / FILE_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self._read_bytes = 0
        # Optuna numbers studies in the order in which the file creates them.
        self._created = 0
        self._studies: dict[str, int] = {}
        self._trials: Counter[tuple[int, int]] = Counter()
        try:
            _repair(self._path)
            lock = JournalFileOpenLock(str(self._path))
            self._file = JournalFileBackend(str(self._path), lock_obj=lock)
        except OSError as error:
            self._lose(error)

    def record(self, space: SearchSpace, outcome: BankOutcome) -> None:
        """Add the trials of a finished bank to its study; those already there stay."""
        if self._lost:
            return
        try:
            self._record(space, outcome)
        except OSError as error:
            # What follows a torn line would be read as a part of it.
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        self._say(
            f"{self._path} could not be written ({error.strerror}): the next run of the sweep "
            "completes it."
        )

    def _record(self, space: SearchSpace, outcome: BankOutcome) -> None:
        self._catch_up()
        name = study_name(outcome.task_id, outcome.group)
        study = self._studies.get(name)
        there = 0 if study is None else self._trials[study, outcome.bank]
        trials = trials_of_bank(space, outcome)[there:]
        creation, *additions = _entries(name, trials)
        number = self._created if study is None else study
        entries = [{**entry, "study_id": number} for entry in additions]
        if study is None:
            entries.insert(0, creation)
        if entries:
            self._file.append_logs(entries)

    def _catch_up(self) -> None:
        """Take note of what the file has besides what was read of it before.

        A dashboard may have written to it too: notes, or that a study is deleted.
        """
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_bytes += len(line)
                # Nobody but Optuna has to understand what others write into it.
                with contextlib.suppress(
                    ValueError, LookupError, TypeError, AttributeError, RecursionError
                ):
                    self._note(json.loads(line))

    def _note(self, entry: _Entry) -> None:
        if "study_name" in entry:
            if entry["study_name"] not in self._studies:
                self._studies[entry["study_name"]] = self._created
                self._created += 1
        elif "bank" in entry.get("user_attrs", {}):
            self._trials[entry["study_id"], entry["user_attrs"]["bank"]] += 1
        elif entry.keys() <= {"op_code", "worker_id", "study_id"}:
            deleted = entry["study_id"]
            self._studies = {name: n for name, n in self._studies.items() if n != deleted}


class _Memory(BaseJournalBackend):
    """Entries in a list."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []

    def read_logs(self, log_number_from: int) -> Iterator[_Entry]:
        yield from self.entries[log_number_from:]

    def append_logs(self, logs: list[_Entry]) -> None:
        self.entries += logs


def _entries(study_name: str, trials: Sequence[FrozenTrial]) -> list[_Entry]:
    """Return what creates a study and adds trials to it; the first entry is its creation."""
    memory = _Memory()
    study = optuna.create_study(
        study_name=study_name, storage=JournalStorage(memory), direction="maximize"
    )
    study.add_trials(trials)
    return memory.entries


def _repair(path: Path) -> None:
    """Remove the lock and the torn last line that a killed writer may have left."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if not os.path.lexists(path):
        return
    content = read_file(path, LARGEST, follow=False)
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
