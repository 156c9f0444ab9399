"""The searcher that Ray Tune asks for trials: banks of candidates, over all tasks of a sweep."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune.search import Searcher

from safe_ray.errors import DamagedFileError, InputError
from safe_ray.files import as_kind, read_record, write_record
from safe_ray.search.failures import Attempts, Failure, failure_of
from safe_ray.search.groups import Group, for_task
from safe_ray.search.lazily import Lazily
from safe_ray.search.sizing import bank_sizes
from safe_ray.search.space import suggest_bank, task_seed
from safe_ray.specs import MethodSpec, Task, Values
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import OUTCOME, BankOutcome

JOB = "job.json"
SHARE = "share"
"""The key under which a trial reports the share of its epochs that is done."""
FAILURE = "failure"
"""The key under which a trial reports why it cannot train its bank."""
SELECTOR = "selector"
"""The key in a trial's config of the labels that its nodes must have."""


@dataclass(frozen=True)
class SearchOptions:
    """How the candidates of each task are handed out.

    Attributes:
        candidates: of each task and group of methods that searches anything; others have one.
        bank: candidates of a bank; the last bank may have fewer.
        banks_in_flight: banks of one study that may be in training at once.
        seed: seeds every task's suggestions.
        checkpoint_seconds: the least time between two checkpoints of a bank.
        before: the candidates that earlier commands of the sweep asked for, rising; their banks
            stay as they are.
        max_failures: how often a bank may fail and go on from its checkpoint. Nodes that are lost,
            or do not see the storage, do not count.
        measured: whether trials sample the load of their machines.
    """

    candidates: int
    bank: int
    banks_in_flight: int
    seed: int
    checkpoint_seconds: float
    before: tuple[int, ...] = ()
    max_failures: int = 0
    measured: bool = False

    def sizes(self, group: Group) -> tuple[int, ...]:
        """Return how many candidates each bank of a group has, for one task."""
        return self._searched if group.space.is_searched else (1,)

    @cached_property
    def _searched(self) -> tuple[int, ...]:
        return bank_sizes((*self.before, self.candidates), self.bank)


class StudyId(NamedTuple):
    """The candidates of one group of methods for one task."""

    task_id: str
    group: str


@dataclass
class _Progress:
    """The banks of one study: handed out, finished, and given up.

    Their candidates and outcomes stay on disk, so that a sweep's tasks cost the driver next to no
    memory.

    Attributes:
        id: which task and which methods.
        group: the methods.
        sizes: how many candidates each bank has.
    """

    id: StudyId
    group: Group
    sizes: tuple[int, ...]
    handed_out: int = 0
    finished: set[int] = field(default_factory=set)
    given_up: dict[int, Failure] = field(default_factory=dict)
    attempts: defaultdict[int, Attempts] = field(default_factory=lambda: defaultdict(Attempts))
    again: list[int] = field(default_factory=list)

    @property
    def banks(self) -> int:
        return len(self.sizes)

    @property
    def is_settled(self) -> bool:
        return all(map(self.settled, range(self.banks)))

    def settled(self, bank: int) -> bool:
        return bank in self.finished or bank in self.given_up


@dataclass(frozen=True)
class Study:
    """What is searched for one task with one group of methods.

    Attributes:
        task_id: the task's id.
        group: the methods; no quantity of its space depends on the shots any more.
    """

    task_id: str
    group: Group

    @staticmethod
    def of(task: Task, group: Group) -> Study:
        """Return the study of a task with a number of shots."""
        return Study(task.id, for_task(group, task.shots))


class BankSearcher(Searcher):
    """Hands out one bank a trial, so that a cluster is full.

    All studies take turns; a study is a task with a group of methods.

    Bank `b` of a study is suggested when the banks up to `b - banks_in_flight` are settled, and
    from these alone, whatever else has ended by then: a sweep's suggestions do not depend on the
    timing of its trials. What is finished on disk is taken over and not trained again.

    Args:
        sweep: the sweep's folder.
        studies: in the order in which to take them.
        options: how the candidates are handed out.
        on_bank: called on the driver for each finished bank (also for those found on disk).
        on_share: called now and then with the candidates' worth of training that unfinished banks
            have had so far.
        say: is told of files that are damaged, of failures, and what becomes of their banks.
    """

    def __init__(
        self,
        sweep: Path,
        studies: Sequence[Study],
        options: SearchOptions,
        on_bank: Callable[[BankJob, BankOutcome], None],
        on_share: Callable[[float], None] | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        super().__init__(metric="finished", mode="max")
        self._sweep = sweep
        self._options = options
        self._on_bank = on_bank
        self._on_share = on_share
        self._say = say
        self._shares: dict[str, float] = {}
        self._running: dict[str, BankJob] = {}
        self._failures: dict[str, Failure] = {}
        self.death: Callable[[str], Failure] = lambda trial_id: Failure("died", "its process died")
        """Returns what is known of a trial that ended without a word, by its id."""
        self.on_blind: Callable[[str], None] = lambda node: None
        """Is told Ray's id of each node that does not see the storage."""
        self.on_start: Callable[[BankJob], None] = lambda job: None
        """Is told each bank that is handed out."""
        self.selector: Callable[[], dict[str, str]] = dict
        """Returns what keeps a trial that is handed out now on nodes that do."""
        self._stopped: Failure | None = None
        self._studies = {
            (key := StudyId(study.task_id, study.group.name)): _Progress(
                key, study.group, options.sizes(study.group)
            )
            for study in studies
        }
        for study in self._studies.values():
            self._take_over(study)

    @property
    def outcomes(self) -> Mapping[StudyId, list[BankOutcome]]:
        """The finished banks of each study, in order; they are read when it is looked up."""
        return Lazily(self._studies, lambda study: self._finished(self._studies[study]))

    def methods(self, study: StudyId) -> tuple[MethodSpec, ...]:
        """Return the methods that are fitted to a study's candidates."""
        return self._studies[study].group.methods

    @property
    def given_up(self) -> Mapping[StudyId, Mapping[int, Failure]]:
        """The banks of each study that could not be trained, with the reason."""
        return {s.id: dict(s.given_up) for s in self._studies.values() if s.given_up}

    @property
    def complete(self) -> bool:
        """Whether every bank of every study is settled."""
        return all(study.is_settled for study in self._studies.values())

    def is_settled(self, study: StudyId) -> bool:
        """Whether every bank of a study is finished or given up."""
        return self._studies[study].is_settled

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
        job = self._take_next()
        if job is None:
            # What is in training may have to be handed out again.
            return Searcher.FINISHED if self.complete else None
        self._running[trial_id] = job
        self.on_start(job)
        return {"job": job.to_json(), SELECTOR: self.selector()}

    def _take_next(self) -> BankJob | None:
        """Hand out a bank that has failed before any other, for the next ones may wait for it."""
        for study in self._studies.values():
            if study.again:
                return self._next_job(study, study.again.pop(0))
        for study in self._in_turn():
            if self._ready(study):
                job = self._next_job(study, study.handed_out)
                study.handed_out += 1
                self._skip_settled(study)
                return job
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take note of how far a trial is, or of why it fails."""
        job = self._running.get(trial_id)
        # Tune joins the keys of what a trial has reported.
        prefix = f"{FAILURE}/"
        told = {k.removeprefix(prefix): v for k, v in result.items() if k.startswith(prefix)}
        if told:
            self.on_failure(trial_id, Failure.from_json(told))
        if job is not None and SHARE in result:
            self._shares[trial_id] = result[SHARE] * len(job.candidates)
            self._tell_share()

    def on_failure(self, trial_id: str, failure: Failure) -> None:
        """Take note of what kept a trial from training its bank; it may be tried again."""
        self._failures[trial_id] = failure
        if failure.kind == "disk":
            self._stopped = failure

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Read the outcome that the trial left; without one its bank is tried again, or given up.

        Tune itself tries nothing again, so that failures are counted in one place.
        """
        job = self._running.pop(trial_id, None)
        self._shares.pop(trial_id, None)
        failure = self._failures.pop(trial_id, None)
        if job is None:
            return
        study = self._studies[StudyId(job.task_id, job.group)]
        outcome = self._sound_outcome(job)
        if outcome is None:
            self._on_failed(study, job, failure or self.death(trial_id))
            return
        study.finished.add(job.bank)
        self._skip_settled(study)
        self._on_bank(job, outcome)
        self._tell_share()

    def _on_failed(self, study: _Progress, job: BankJob, failure: Failure) -> None:
        if failure.kind == "blind":
            self.on_blind(failure.node)
        if study.attempts[job.bank].again(failure, self._options.max_failures):
            study.again.append(job.bank)
            uncounted = "" if failure.counts else " (this is no failure of its own)"
            self._say(
                f"{job.name}: {failure.reason}; it is tried again from its last checkpoint"
                f"{uncounted}."
            )
            return
        study.given_up[job.bank] = failure
        self._skip_settled(study)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the state of the search is the outcomes in the sweep's folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a new searcher takes over what is in the sweep's folder."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the callbacks: Tune pickles its searcher for a restore that we do not use."""
        callbacks = ("_on_bank", "_on_share", "_say", "death", "on_blind", "on_start", "selector")
        return {**self.__dict__, **dict.fromkeys(callbacks)}

    def _tell_share(self) -> None:
        if self._on_share is not None:
            self._on_share(sum(self._shares.values()))

    def _take_over(self, study: _Progress) -> None:
        for bank in range(study.banks):
            outcome = self._sound_outcome(self._job(study, bank))
            if outcome is not None:
                study.finished.add(bank)
                candidates = [each.values for each in outcome.candidates]
                self._on_bank(self._job(study, bank, candidates), outcome)
        self._skip_settled(study)

    def _sound_outcome(self, job: BankJob) -> BankOutcome | None:
        """Return a bank's outcome; one that is damaged is removed, so that the bank is trained."""
        try:
            return BankOutcome.load(job.folder)
        except DamagedFileError:
            (job.folder / OUTCOME).unlink()
            self._say(f"{job.folder / OUTCOME} was damaged: its bank is trained again.")
            return None

    def _skip_settled(self, study: _Progress) -> None:
        while study.handed_out < study.banks and study.settled(study.handed_out):
            study.handed_out += 1

    def _in_turn(self) -> list[_Progress]:
        """Return the studies that may be in training, the one to go on with first."""
        # The study with the fewest banks goes first, so that all tasks advance together.
        return sorted(self._studies.values(), key=lambda study: study.handed_out)

    def _ready(self, study: _Progress) -> bool:
        bank = study.handed_out
        if bank >= study.banks:
            return False
        needed = bank - self._options.banks_in_flight
        return all(study.settled(earlier) for earlier in range(needed + 1))

    def _next_job(self, study: _Progress, bank: int) -> BankJob:
        options = self._options
        seen = max(0, bank - options.banks_in_flight + 1)
        job = self._read_job(study, bank)
        if job is None:
            pending = [self._read_job(study, earlier) for earlier in range(seen, bank)]
            candidates = suggest_bank(
                study.group.space,
                self._finished(study, before=seen),
                [earlier.candidates for earlier in pending if earlier is not None],
                study.sizes[bank],
                task_seed(options.seed, study.id.task_id),
            )
            job = self._job(study, bank, candidates)
            write_record(job.folder / JOB, {"candidates": candidates})
        return job

    def _finished(self, study: _Progress, before: int | None = None) -> list[BankOutcome]:
        """Read a study's finished banks, or of these the ones before a bank."""
        found = (
            BankOutcome.load(self._job(study, bank).folder)
            for bank in sorted(study.finished)
            if before is None or bank < before
        )
        return [outcome for outcome in found if outcome is not None]

    def _job(self, study: _Progress, bank: int, candidates: Sequence[Values] = ()) -> BankJob:
        options = self._options
        return BankJob(
            str(self._sweep),
            *study.id,
            bank,
            tuple(candidates),
            options.checkpoint_seconds,
            options.measured,
        )

    def _read_job(self, study: _Progress, bank: int) -> BankJob | None:
        """Return the bank that an earlier run of the sweep handed out, or None.

        The outcome of a finished bank holds its candidates, too. Those of another are made again
        where their file is damaged, for they follow from the outcomes before them alone.
        """
        job = self._job(study, bank)
        outcome = BankOutcome.load(job.folder) if bank in study.finished else None
        if outcome is not None:
            return replace(job, candidates=tuple(each.values for each in outcome.candidates))
        try:
            candidates = read_candidates(job.folder)
        except DamagedFileError:
            self._say(f"{job.folder / JOB} was damaged: its candidates are suggested again.")
            return None
        return None if candidates is None else replace(job, candidates=candidates)


@dataclass(frozen=True)
class _Job:
    """What `job.json` holds."""

    candidates: tuple[Values, ...]


def read_candidates(folder: Path) -> tuple[Values, ...] | None:
    """Return the candidates that a bank's `job.json` hands out; None if there is none.

    Raises:
        DamagedFileError: the file does not hold what was written.
    """
    record = read_record(folder / JOB)
    return None if record is None else as_kind(_Job, record, folder / JOB).candidates


def _trained(folder: Path) -> tuple[Values, ...] | None:
    outcome = BankOutcome.load(folder)
    return None if outcome is None else tuple(each.values for each in outcome.candidates)


def size_of_first_bank(sweep: Path) -> int | None:
    """Return how many candidates the sweep's first banks have; None if there is none to be read.

    Methods that search nothing have one candidate, which says nothing of the others.
    """
    sizes = []
    for folder in sorted(sweep.glob("banks/*/*/bank-000")):
        for read in (_trained, read_candidates):
            with contextlib.suppress(DamagedFileError):
                found = read(folder)
                if found is not None:
                    sizes.append(len(found))
                    break
    return max(sizes, default=None)
