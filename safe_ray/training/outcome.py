"""What a finished bank tells the search: `outcome.json`, the last file that a bank leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safe_ray.files import as_kind, damaged, read_record, write_record
from safe_ray.outside import is_plain_name
from safe_ray.specs import KnobRow, Point, Values
from safe_ray.usage import Sample, is_time

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Fit:
    """One method, fitted with one candidate, as the validation samples see it.

    Attributes:
        at: the chosen value of each knob.
        point: what the validation samples say there.
        rows: along each knob that was solved by itself; knobs that are solved together have none.
        head: the folder of its files, relative to the bank's folder; None for a method that keeps
            nothing.
    """

    at: Mapping[str, float]
    point: Point
    rows: Mapping[str, KnobRow]
    head: str | None

    @property
    def is_sound(self) -> bool:
        """Whether its rows have as many figures in each column, and its head is a folder's name."""
        lengths = [{len(column) for column in vars(row).values()} for row in self.rows.values()]
        return (self.head is None or is_plain_name(self.head)) and all(
            len(each) == 1 for each in lengths
        )


@dataclass(frozen=True)
class CandidateOutcome:
    """What became of one candidate.

    Attributes:
        slot: its place in the bank.
        values: what it was trained with.
        failed: its loss, its weights or what it gives stopped being finite.
        losses: mean training loss of each epoch of the pooling, in nats; none where none is tuned.
        fits: of each method of the group, by its name; none if the candidate failed.
    """

    slot: int
    values: Values
    failed: bool
    losses: tuple[float, ...]
    fits: Mapping[str, Fit]


@dataclass(frozen=True)
class BankOutcome:
    """What a finished bank tells the search.

    Attributes:
        task_id: the task's id.
        group: the methods that were fitted (see `safe_ray.specs.MethodGroup`).
        bank: 0 for the group's first bank.
        samples: how many samples the validation figures are over.
        seconds: how long it took.
        candidates: in the order of their slots.
        began: when the first process began with it, in seconds since 1970; 0 if nobody knows.
        ended: when its last candidate was judged; 0 if nobody knows.
        epochs: when each epoch of the longest candidate ended.
        usage: of the machine of its first worker.
    """

    task_id: str
    group: str
    bank: int
    samples: int
    seconds: float
    candidates: tuple[CandidateOutcome, ...]
    began: float = 0.0
    ended: float = 0.0
    epochs: tuple[float, ...] = ()
    usage: tuple[Sample, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `outcome.json`; a loss that is not finite becomes null."""
        value = asdict(self)
        for candidate in value["candidates"]:
            losses = candidate["losses"]
            candidate["losses"] = [loss if math.isfinite(loss) else None for loss in losses]
        write_record(folder / OUTCOME, value)

    @staticmethod
    def load(folder: Path) -> BankOutcome | None:
        """Read the outcome of a finished bank, or return None if the bank is not finished.

        Raises:
            DamagedFileError: the file does not hold what was written.
        """
        value = read_record(folder / OUTCOME)
        if value is None:
            return None
        path = folder / OUTCOME
        try:
            for candidate in value["candidates"]:
                losses = candidate["losses"]
                candidate["losses"] = [math.nan if loss is None else loss for loss in losses]
        except (TypeError, KeyError) as error:
            raise damaged(path) from error
        outcome = as_kind(BankOutcome, value, path)
        if not outcome.is_sound:
            raise damaged(path)
        return outcome

    @property
    def is_sound(self) -> bool:
        """Whether its parts agree, and what it names lies in the bank's own folder."""
        return (
            is_plain_name(self.task_id)
            and is_plain_name(self.group)
            and self.bank >= 0
            and self.samples >= 0
            and all(map(is_time, (self.began, self.ended, *self.epochs)))
            and all(each.is_sound for each in self.usage)
            and all(candidate.slot >= 0 for candidate in self.candidates)
            and all(fit.is_sound for each in self.candidates for fit in each.fits.values())
        )
