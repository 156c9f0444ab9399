"""The table of the suite: what is promised, what was done, and how much was lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.lab import Kind

BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
_HEADER = ("what happens", "promise", "test", "injections", "lost")


@dataclass
class Tally:
    """What was seen of a kind.

    Attributes:
        injections: how many were done.
        lost: after how many of them anything was lost, or not said.
        impossible: why none can be made here.
    """

    injections: int = 0
    lost: int = 0
    impossible: str = ""

    def cells(self) -> tuple[str, str]:
        """Return the last two columns."""
        if not self.injections:
            return ("-", self.impossible or "-")
        return (str(self.injections), str(self.lost))


def table(kinds: Sequence[Kind], tallies: Mapping[str, Tally]) -> str:
    """Return the table in Markdown."""
    rows = [
        (kind.name, kind.promise, kind.where, *tallies.get(kind.name, Tally()).cells())
        for kind in kinds
    ]
    lines = [_HEADER, ("---",) * len(_HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_table(document: str) -> dict[str, Tally]:
    """Return what a document's table has of each kind."""
    found = {}
    for line in _between(document)[1].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == len(_HEADER) and cells[3].isdecimal():
            found[cells[0]] = Tally(int(cells[3]), int(cells[4]))
    return found


def replace_table(file: Path, kinds: Sequence[Kind], tallies: Mapping[str, Tally]) -> None:
    """Write the table into a document; kinds that were not run keep their numbers.

    Raises:
        ValueError: the document has no place for it.
    """
    document = file.read_text()
    before, _, after = _between(document)
    known = {**read_table(document), **tallies}
    file.write_text(f"{before}{BEGIN}\n{table(kinds, known)}\n{END}{after}")


def _between(document: str) -> tuple[str, str, str]:
    before, begin, rest = document.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} and {END}")
    return before, inside, after
