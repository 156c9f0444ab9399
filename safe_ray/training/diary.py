"""`diary.json`: how far a bank has come, for whoever watches it, and when each epoch ended.

It is written when a bank begins and with each checkpoint, so that it holds what a bank that is
killed goes on from, and nothing that is trained again. What it says is in the outcome at the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safe_ray.errors import DamagedFileError
from safe_ray.files import as_kind, damaged, read_record, write_record
from safe_ray.usage import MOST, Sample, Sampler, is_time

DIARY = "diary.json"


@dataclass(frozen=True)
class Diary:
    """How far a bank has come.

    Attributes:
        bank: the digest of its candidates.
        began: when the first process began with it, in seconds since 1970.
        epochs: when each epoch of the longest candidate ended.
        losses: of each candidate, the mean training loss of each of its epochs; null if it is not
            finite.
        usage: of the machine.
    """

    bank: str
    began: float
    epochs: tuple[float, ...] = ()
    losses: tuple[tuple[float | None, ...], ...] = ()
    usage: tuple[Sample, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether its numbers are times and losses."""
        return all(map(is_time, (self.began, *self.epochs))) and all(
            each.is_sound for each in self.usage
        )

    def save(self, folder: Path) -> None:
        """Write the file."""
        write_record(folder / DIARY, asdict(self))

    @staticmethod
    def load(folder: Path) -> Diary | None:
        """Read the file; None if there is none.

        Raises:
            DamagedFileError: it does not hold what was written.
        """
        value = read_record(folder / DIARY)
        if value is None:
            return None
        diary = as_kind(Diary, value, folder / DIARY)
        if not diary.is_sound:
            raise damaged(folder / DIARY)
        return diary


@dataclass
class Keeper:
    """Keeps the diary of one bank, on its first worker.

    Attributes:
        folder: of the bank.
        digest: of its candidates.
        began: when the first process began with it.
        epochs: when each epoch ended, so far.
        before: what was measured by earlier processes.
    """

    folder: Path
    digest: str
    began: float
    epochs: list[float] = field(default_factory=list)
    before: tuple[Sample, ...] = ()
    _sampler: Sampler | None = None

    @staticmethod
    def open(folder: Path, digest: str) -> Keeper:
        """Go on with what an earlier process has left of the same bank, or begin."""
        try:
            found = Diary.load(folder)
        except DamagedFileError:
            found = None
        if found is None or found.bank != digest:
            return Keeper(folder, digest, round(time.time(), 3))
        return Keeper(folder, digest, found.began, list(found.epochs), found.usage)

    def measure(self, sampler: Sampler) -> None:
        """Take what a sampler measures into the diary."""
        self._sampler = sampler

    def begin(self, epoch: int) -> None:
        """Note that training goes on after so many epochs; what came after them is forgotten."""
        now = round(time.time(), 3)
        # A checkpoint may be newer than the diary, by as much as lies between their writing.
        self.epochs = [*self.epochs[:epoch], *[now] * (epoch - len(self.epochs))]

    def end_epoch(self) -> None:
        """Note that an epoch ended."""
        self.epochs.append(round(time.time(), 3))

    def usage(self) -> tuple[Sample, ...]:
        """Return what was measured, by this process and those before; the latest, if it is much."""
        now = () if self._sampler is None else self._sampler.samples
        return (*self.before, *now)[-MOST:]

    def write(self, losses: Sequence[Sequence[float]]) -> None:
        """Write the diary, with the losses of each candidate."""
        known = tuple(
            tuple(loss if math.isfinite(loss) else None for loss in each) for each in losses
        )
        Diary(self.digest, self.began, tuple(self.epochs), known, self.usage()).save(self.folder)
