"""The searcher that Ray Tune asks for trials: banks of candidates, over all tasks of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from safe_ray.files import write_atomically
from safe_ray.search.space import SearchSpace, suggest_bank, task_seed
from safe_ray.search.transfer import Loan, best_quarter, borrow, lenders
from safe_ray.specs import HyperParameters, Task
from safe_ray.training.job import BankJob, BankOutcome

JOB = "job.json"
LOANS = "borrowed.json"
SHARE = "share"
"""The key under which a trial reports the share of its epochs that is done."""


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
        window: tasks that may be unfinished at once, so that later ones borrow from those that have
            ended (see `safe_ray.search.transfer`); None begins all tasks at once.
    """

    candidates: int
    bank: int
    banks_in_flight: int
    row_points: int
    seed: int
    checkpoint_seconds: float
    window: int | None = None

    @property
    def banks(self) -> int:
        """Banks of each task."""
        return -(-self.candidates // self.bank)

    def size(self, bank: int) -> int:
        """Return how many candidates a bank of a task has."""
        return min(self.bank, self.candidates - bank * self.bank)


@dataclass
class _TaskProgress:
    """The banks of one task: handed out, finished, and given up.

    Their candidates and outcomes stay on disk, so that a sweep's tasks cost the driver next to no
    memory. What an ended task lends is kept, for every later task asks for it.
    """

    task: Task
    handed_out: int = 0
    finished: set[int] = field(default_factory=set)
    given_up: dict[int, str] = field(default_factory=dict)
    offers: list[HyperParameters] | None = None

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

    Without a window all tasks take turns. With one, the unfinished task that comes first has
    precedence, and the next task begins only where a trial would find nothing else to do.

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
    """

    def __init__(
        self,
        sweep: Path,
        tasks: Sequence[Task],
        space: SearchSpace,
        options: SearchOptions,
        on_bank: Callable[[BankJob, BankOutcome], None],
        on_share: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(metric="finished", mode="max")
        self._sweep = sweep
        self._space = space
        self._options = options
        self._on_bank = on_bank
        self._on_share = on_share
        self._shares: dict[str, float] = {}
        self._running: dict[str, BankJob] = {}
        self._tasks = {task.id: _TaskProgress(task) for task in tasks}
        self._order = list(self._tasks.values())
        for progress in self._tasks.values():
            self._take_over(progress)

    @property
    def outcomes(self) -> Mapping[str, list[BankOutcome]]:
        """The finished banks of each task, in order; a task's are read when it is looked up."""
        return _Outcomes(list(self._tasks), self._finished)

    @property
    def given_up(self) -> Mapping[str, Mapping[int, str]]:
        """The banks of each task that could not be trained, with the reason."""
        return {t: dict(p.given_up) for t, p in self._tasks.items() if p.given_up}

    @property
    def complete(self) -> bool:
        """Whether every bank of every task is settled."""
        return self._ended() == len(self._order)

    def suggest(self, trial_id: str) -> Any:
        """Return the next bank as a trial's config, None to wait, or FINISHED."""
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
        """Take note of how far a trial is."""
        job = self._running.get(trial_id)
        if job is not None and SHARE in result:
            self._shares[trial_id] = result[SHARE] * len(job.candidates)
            self._tell_share()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Read the outcome that the trial left; a trial without one has failed for good."""
        job = self._running.pop(trial_id, None)
        self._shares.pop(trial_id, None)
        if job is None:
            return
        progress = self._tasks[job.task_id]
        outcome = BankOutcome.load(job.folder)
        if outcome is None:
            progress.given_up[job.bank] = "its trial ended without a result"
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
        return {**self.__dict__, "_on_bank": None, "_on_share": None}

    def _tell_share(self) -> None:
        if self._on_share is not None:
            self._on_share(sum(self._shares.values()))

    def _take_over(self, progress: _TaskProgress) -> None:
        for bank in range(self._options.banks):
            outcome = BankOutcome.load(self._job(progress.task_id, bank).folder)
            job = self._read_job(progress.task_id, bank)
            if outcome is not None and job is not None:
                progress.finished.add(bank)
                self._on_bank(job, outcome)
        self._skip_settled(progress)

    def _skip_settled(self, progress: _TaskProgress) -> None:
        while progress.handed_out < self._options.banks and progress.settled(progress.handed_out):
            progress.handed_out += 1

    def _ended(self) -> int:
        """Return how many tasks have ended before the first one that has not."""
        banks = range(self._options.banks)
        ended = (all(map(progress.settled, banks)) for progress in self._order)
        return next((place for place, done in enumerate(ended) if not done), len(self._order))

    def _in_turn(self) -> list[_TaskProgress]:
        """Return the tasks that may be in training, the one to go on with first."""
        if self._options.window is None:
            # The task with the fewest banks goes first, so that all tasks advance together.
            return sorted(self._order, key=lambda progress: progress.handed_out)
        # The first task that has not ended is among them: nothing waits for ever.
        return self._order[: self._ended() + self._options.window]

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
            loans = self._loans(progress) if bank == 0 else []
            candidates = [loan.candidate for loan in loans]
            pending = [self._read_job(progress.task_id, earlier) for earlier in range(seen, bank)]
            candidates += suggest_bank(
                self._space,
                self._finished(progress.task_id, before=seen),
                [earlier.candidates for earlier in pending if earlier is not None],
                options.size(bank) - len(loans),
                task_seed(options.seed, progress.task_id),
                options.row_points,
            )
            job = self._job(progress.task_id, bank, candidates)
            if loans:
                sources = [loan.source for loan in loans]
                write_atomically(job.folder / LOANS, json.dumps(sources))
            write_atomically(job.folder / JOB, json.dumps([asdict(c) for c in candidates]))
        return job

    def _finished(self, task_id: str, before: int | None = None) -> list[BankOutcome]:
        """Read a task's finished banks, or of these the ones before a bank."""
        found = (
            BankOutcome.load(self._job(task_id, bank).folder)
            for bank in sorted(self._tasks[task_id].finished)
            if before is None or bank < before
        )
        return [outcome for outcome in found if outcome is not None]

    def _loans(self, progress: _TaskProgress) -> list[Loan]:
        if self._options.window is None:
            return []
        tasks = [other.task for other in self._order]
        sources = lenders(tasks, tasks.index(progress.task), self._options.window)
        offers = {source: self._offers(source.id) for source in sources}
        return borrow(self._space, progress.task, offers, self._options.size(0))

    def _offers(self, task_id: str) -> list[HyperParameters]:
        """Return what an ended task lends."""
        progress = self._tasks[task_id]
        if progress.offers is None:
            progress.offers = best_quarter(self._finished(task_id))
        return progress.offers

    def _job(self, task_id: str, bank: int, candidates: Sequence[HyperParameters] = ()) -> BankJob:
        return BankJob(
            str(self._sweep), task_id, bank, tuple(candidates), self._options.checkpoint_seconds
        )

    def _read_job(self, task_id: str, bank: int) -> BankJob | None:
        """Return the bank that an earlier run of the sweep handed out, or None."""
        try:
            candidates = json.loads((self._job(task_id, bank).folder / JOB).read_text())
        except FileNotFoundError:
            return None
        return self._job(task_id, bank, [HyperParameters(**c) for c in candidates])
