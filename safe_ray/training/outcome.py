"""What a finished bank tells the search: `outcome.json`, the last file that a bank leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safe_ray.files import read_record, write_record
from safe_ray.specs import KnobRow, Point, Values

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

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Fit:
        """Read what `dataclasses.asdict` and JSON made of one."""
        rows = {
            name: KnobRow(**{column: tuple(numbers) for column, numbers in row.items()})
            for name, row in value["rows"].items()
        }
        return Fit(value["at"], Point(**value["point"]), rows, value["head"])


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

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> CandidateOutcome:
        """Read what `BankOutcome.save` wrote of one."""
        return CandidateOutcome(
            slot=value["slot"],
            values=value["values"],
            failed=value["failed"],
            losses=tuple(math.nan if loss is None else loss for loss in value["losses"]),
            fits={name: Fit.from_json(fit) for name, fit in value["fits"].items()},
        )


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
    """

    task_id: str
    group: str
    bank: int
    samples: int
    seconds: float
    candidates: tuple[CandidateOutcome, ...]

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
        candidates = tuple(map(CandidateOutcome.from_json, value["candidates"]))
        return BankOutcome(**{**value, "candidates": candidates})
