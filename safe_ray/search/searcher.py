"""The searcher that Ray Tune asks for trials: banks of candidates, over all tasks of a sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from safe_ray.errors import DamagedFileError, InputError
from safe_ray.files import read_record, write_record
from safe_ray.search.failures import Failure, failure_of
from safe_ray.search.sizing import bank_sizes
from safe_ray.search.space import SearchSpace, suggest_bank, task_seed
from safe_ray.specs import HyperParameters, Task
from safe_ray.training.job import OUTCOME, BankJob, BankOutcome

JOB = "job.json"
SHARE = "share"
"""The key under which a trial reports the share of its epochs that is done."""
FAILURE = "failure"
"""The key under which a trial reports why it cannot train its bank."""


@dataclass(frozen=True)
class SearchOptions:
    """How the candidates of each task are handed out.

    Attributes:
        candidates: heads to train for each task.
        bank: heads of a bank; the last bank of a task may have fewer.
        banks_in_flight: banks of one task that may be in training at once.
        row_points: points of a head's alpha row that its study is told beside its own.
        seed: seeds every task's suggestions.
        checkpoint_seconds: the least time between two checkpoints of a bank.
        before: the candidates that earlier commands of the sweep asked for, rising; their banks
            stay as they are.
    """

    candidates: int
    bank: int
    banks_in_flight: int
    row_points: int
    seed: int
    checkpoint_seconds: float
    before: tuple[int, ...] = ()

    @property
    def banks(self) -> int:
        """Banks of each task."""
        return len(self._sizes)

    def size(self, bank: int) -> int:
        """Return how many candidates a bank of a task has."""
        return self._sizes[bank]

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return bank_sizes((*self.before, self.candidates), self.bank)


@dataclass
class _TaskProgress:
    """The banks of one task: handed out, finished, and given up.

    Their candidates and outcomes stay on disk, so that a sweep's tasks cost the driver next to no
    memory.
    """

    task: Task
    handed_out: int = 0
    finished: set[int] = field(default_factory=set)
    given_up: dict[int, Failure] = field(default_factory=dict)

    @property
    def task_id(self) -> str:
        return self.task.id

    def settled(self, bank: int) -> bool:
        return bank in self.finished or bank in self.given_up


class _Outcomes(Mapping[str, list[BankOutcome]]):
    """The finished banks of each task, read when they are asked for."""

    def __init__(self, tasks: Sequence[str], read: Callable[[str], list[BankOutcome]]) -> None:
        self._tasks = dict.fromkeys(tasks)
        self._read = read

    def __getitem__(self, task_id: str) -> list[BankOutcome]:
        if task_id not in self._tasks:
            raise KeyError(task_id)
        return self._read(task_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


class BankSearcher(Searcher):
    """Hands out one bank a trial, so that a cluster is full.

    All tasks take turns.

    Bank `b` of a task is suggested when the banks up to `b - banks_in_flight` are settled, and
    from these alone, whatever else has ended by then: a sweep's suggestions do not depend on the
    timing of its trials. What is finished on disk is taken over and not trained again.

    Args:
        sweep: the sweep's folder.
        tasks: the tasks, in the order in which to take them.
        space: what is searched.
        options: how the candidates are handed out.
        on_bank: called on the driver for each finished bank (also for those found on disk).
        on_share: called now and then with the candidates' worth of training that unfinished banks
            have had so far.
        say: is told of files that are damaged, and what becomes of their banks.
    """

    def __init__(
        self,
        sweep: Path,
        tasks: Sequence[Task],
        space: SearchSpace,
        options: SearchOptions,
        on_bank: Callable[[BankJob, BankOutcome], None],
        on_share: Callable[[float], None] | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__(metric="finished", mode="max")
        self._sweep = sweep
        self._space = space
        self._options = options
        self._on_bank = on_bank
        self._on_share = on_share
        self._say = say
        self._shares: dict[str, float] = {}
        self._running: dict[str, BankJob] = {}
        self._failures: dict[str, Failure] = {}
        self._last: dict[str, Failure] = {}
        self._stopped: Failure | None = None
        self._tasks = {task.id: _TaskProgress(task) for task in tasks}
        self._order = list(self._tasks.values())
        for progress in self._tasks.values():
            self._take_over(progress)

    @property
    def outcomes(self) -> Mapping[str, list[BankOutcome]]:
        """The finished banks of each task, in order; a task's are read when it is looked up."""
        return _Outcomes(list(self._tasks), self._finished)

    @property
    def given_up(self) -> Mapping[str, Mapping[int, Failure]]:
        """The banks of each task that could not be trained, with the reason."""
        return {t: dict(p.given_up) for t, p in self._tasks.items() if p.given_up}

    @property
    def complete(self) -> bool:
        """Whether every bank of every task is settled."""
        banks = range(self._options.banks)
        return all(all(map(progress.settled, banks)) for progress in self._order)

    def is_settled(self, task_id: str) -> bool:
        """Whether every bank of a task is finished or given up."""
        return all(map(self._tasks[task_id].settled, range(self._options.banks)))

    @property
    def stopped(self) -> Failure | None:
        """Why no more banks are handed out before all are settled: the disk is full."""
        return self._stopped

    def suggest(self, trial_id: str) -> Any:
        """Return the next bank as a trial's config, None to wait, or FINISHED."""
        try:
            return self._suggest(trial_id)
        except (InputError, OSError) as error:
            # The bank's folder cannot be written to, and the next bank's could not be either.
            self._stopped = failure_of(error)
            return Searcher.FINISHED

    def _suggest(self, trial_id: str) -> Any:
        if self._stopped is not None:
            return Searcher.FINISHED
        for progress in self._in_turn():
            if self._ready(progress):
                job = self._next_job(progress)
                progress.handed_out += 1
                self._skip_settled(progress)
                self._running[trial_id] = job
                return {"job": job.to_json()}
        waiting = any(p.handed_out < self._options.banks for p in self._order)
        return None if waiting else Searcher.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take note of how far a trial is, or of why it fails."""
        job = self._running.get(trial_id)
        if FAILURE in result:
            self.on_failure(trial_id, Failure.from_json(result[FAILURE]))
        if job is not None and SHARE in result:
            self._shares[trial_id] = result[SHARE] * len(job.candidates)
            self._tell_share()

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Take note of what kept a trial from training its bank; it may be tried again."""
        self._failures[trial_id] = failure
        if failure.kind == "disk":
            self._stopped = failure

    def on_retry(self, trial_id: str, otherwise: Failure) -> Failure:
        """Return why a trial is tried again: what it reported itself, or else what is known."""
        failure = self._failures.pop(trial_id, otherwise)
        self._last[trial_id] = failure
        return failure

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Read the outcome that the trial left; a trial without one has failed for good."""
        job = self._running.pop(trial_id, None)
        self._shares.pop(trial_id, None)
        last = self._last.pop(trial_id, Failure("died", "its process died"))
        failure = self._failures.pop(trial_id, last)
        if job is None:
            return
        progress = self._tasks[job.task_id]
        outcome = self._sound_outcome(job)
        if outcome is None:
            progress.given_up[job.bank] = failure
            self._skip_settled(progress)
            return
        progress.finished.add(job.bank)
        self._skip_settled(progress)
        self._on_bank(job, outcome)
        self._tell_share()

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state of the search is the outcomes in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a new searcher takes over what is in the sweep's folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the callbacks: Tune pickles its searcher for a restore that we do not use."""
        return {**self.__dict__, "_on_bank": None, "_on_share": None, "_say": None}

    def _tell_share(self) -> None:
        if self._on_share is not None:
            self._on_share(sum(self._shares.values()))

    def _take_over(self, progress: _TaskProgress) -> None:
        for bank in range(self._options.banks):
            outcome = self._sound_outcome(self._job(progress.task_id, bank))
            if outcome is not None:
                progress.finished.add(bank)
                candidates = [each.hyper_parameters for each in outcome.candidates]
                self._on_bank(self._job(progress.task_id, bank, candidates), outcome)
        self._skip_settled(progress)

    def _sound_outcome(self, job: BankJob) -> BankOutcome | None:
        """Return a bank's outcome; one that is damaged is removed, so that the bank is trained."""
        try:
            return BankOutcome.load(job.folder)
        except DamagedFileError:
            (job.folder / OUTCOME).unlink()
            self._say(f"{job.folder / OUTCOME} was damaged: its bank is trained again.")
            return None

    def _skip_settled(self, progress: _TaskProgress) -> None:
        while progress.handed_out < self._options.banks and progress.settled(progress.handed_out):
            progress.handed_out += 1

    def _in_turn(self) -> list[_TaskProgress]:
        """Return the tasks that may be in training, the one to go on with first."""
        # The task with the fewest banks goes first, so that all tasks advance together.
        return sorted(self._order, key=lambda progress: progress.handed_out)

    def _ready(self, progress: _TaskProgress) -> bool:
        bank = progress.handed_out
        if bank >= self._options.banks:
            return False
        needed = bank - self._options.banks_in_flight
        return all(progress.settled(earlier) for earlier in range(needed + 1))

    def _next_job(self, progress: _TaskProgress) -> BankJob:
        bank = progress.handed_out
        options = self._options
        seen = max(0, bank - options.banks_in_flight + 1)
        job = self._read_job(progress.task_id, bank)
        if job is None:
            pending = [self._read_job(progress.task_id, earlier) for earlier in range(seen, bank)]
            candidates = suggest_bank(
                self._space,
                self._finished(progress.task_id, before=seen),
                [earlier.candidates for earlier in pending if earlier is not None],
                options.size(bank),
                task_seed(options.seed, progress.task_id),
                options.row_points,
            )
            job = self._job(progress.task_id, bank, candidates)
            write_record(job.folder / JOB, {"candidates": [asdict(c) for c in candidates]})
        return job

    def _finished(self, task_id: str, before: int | None = None) -> list[BankOutcome]:
        """Read a task's finished banks, or of these the ones before a bank."""
        found = (
            BankOutcome.load(self._job(task_id, bank).folder)
            for bank in sorted(self._tasks[task_id].finished)
            if before is None or bank < before
        )
        return [outcome for outcome in found if outcome is not None]

    def _job(self, task_id: str, bank: int, candidates: Sequence[HyperParameters] = ()) -> BankJob:
        return BankJob(
            str(self._sweep), task_id, bank, tuple(candidates), self._options.checkpoint_seconds
        )

    def _read_job(self, task_id: str, bank: int) -> BankJob | None:
        """Return the bank that an earlier run of the sweep handed out, or None.

        The outcome of a finished bank holds its candidates, too. Those of another are made again
        where their file is damaged, for they follow from the outcomes before them alone.
        """
        job = self._job(task_id, bank)
        outcome = BankOutcome.load(job.folder) if bank in self._tasks[task_id].finished else None
        if outcome is not None:
            return replace(job, candidates=tuple(c.hyper_parameters for c in outcome.candidates))
        try:
            record = read_record(job.folder / JOB)
        except DamagedFileError:
            self._say(f"{job.folder / JOB} was damaged: its candidates are suggested again.")
            return None
        if record is None:
            return None
        candidates = tuple(HyperParameters(**c) for c in record["candidates"])
        return replace(job, candidates=candidates)


def size_of_first_bank(sweep: Path) -> int | None:
    """Return how many candidates the sweep's first banks have; None if there is none to be read."""
    for folder in sorted(sweep.glob("banks/*/bank-000")):
        for name in (OUTCOME, JOB):
            with contextlib.suppress(DamagedFileError):
                record = read_record(folder / name)
                if record is not None:
                    return len(record["candidates"])
    return None
