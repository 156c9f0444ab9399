"""The table of a sweep, on the console, as Markdown and as Parquet.

One row a data set, number of shots and method: means over seeds in per cent, with 95% intervals.
The last rows for every number of shots average over the data sets, seed by seed, and take the
interval over these averages; where it is known which test images were right, intervals are over
seeds and images.

The table is of accuracy. Where mean per class accuracy is another number in any of its cells, a
second table of the same form has that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from safe_ray.files import write_atomically
from safe_ray.report.cells import columns_of, notes, sections
from safe_ray.report.correct import Correct
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.parquet import PARQUET_FILE, write_parquet
from safe_ray.report.rows import Row
from safe_ray.report.summary import TaskResult, write_summary

MARKDOWN_FILE = "results.md"

# A table is as wide as its cells are: what is printed into a file is never cut.
_WIDTH_OF_A_FILE = 1000
_TO_THE_LEFT = frozenset({"data set", "method"})


def print_table(
    results: Sequence[TaskResult],
    file: IO[str] | None = None,
    correct: Sequence[Correct] = (),
) -> None:
    """Print the table, with colours only on a terminal and in ASCII where UTF-8 is not spoken.

    Args:
        results: an entry a task and method.
        file: where to print; None is standard output.
        correct: see `write_report`.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    file = sys.stdout if file is None else file
    terminal = file.isatty()
    unicode = (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")

    def spoken(text: str) -> str:
        return text if unicode else text.replace("±", "+/-").encode("ascii", "replace").decode()

    def as_data(text: str) -> str:
        # Names are data: their brackets are not rich's markup.
        return spoken(text).replace("[", r"\[")

    console = Console(
        file=file,
        width=None if terminal else _WIDTH_OF_A_FILE,
        no_color=None if terminal else True,
        highlight=False,
    )
    parts = sections(results, _outcomes(correct))
    for part in parts:
        table = Table(
            box=box.SIMPLE_HEAD if unicode else box.ASCII,
            title=part.title or None,
            title_justify="left",
            caption=spoken("\n".join(notes(results, parts))) if part is parts[-1] else None,
            caption_justify="left",
        )
        for name, _ in columns_of(results):
            left = name in _TO_THE_LEFT
            table.add_column(as_data(name), justify="left" if left else "right", no_wrap=True)
        previous: Row | None = None
        for row, cells in zip(part.rows, part.cells, strict=True):
            if previous is not None and row.is_average and not previous.is_average:
                table.add_section()
            table.add_row(*map(as_data, cells), style="bold" if row.is_average else None)
            previous = row
        console.print(table)


def markdown(results: Sequence[TaskResult], correct: Sequence[Correct] = ()) -> str:
    """Return the table as GitHub's Markdown, with a note on how to read it.

    Args:
        results: an entry a task and method.
        correct: see `write_report`.
    """
    parts = sections(results, _outcomes(correct))
    names = [_escaped(name) for name, _ in columns_of(results)]
    sides = (":--" if name in _TO_THE_LEFT else "--:" for name in names)
    header = ["| " + " | ".join(names) + " |", f"|{'|'.join(sides)}|"]
    lines: list[str] = []
    for part in parts:
        lines += [f"{part.title}:", ""] if part.title else []
        lines += header
        for row, cells in zip(part.rows, part.cells, strict=True):
            shown = (
                f"**{_escaped(cell)}**" if row.is_average else _escaped(cell) for cell in cells
            )
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join([*lines, *(f"{note}\n" for note in notes(results, parts))])


def _outcomes(correct: Sequence[Correct]) -> Outcomes | None:
    return Outcomes(correct) if correct else None


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


def write_report(
    results: Sequence[TaskResult],
    folder: Path,
    without: Sequence[str] = (),
    correct: Sequence[Correct] = (),
) -> list[Path]:
    """Write `summary.json`, `results.parquet` and `results.md`, and return their paths.

    Args:
        results: an entry a task and method.
        folder: where the files go.
        without: the ids of tasks that have no result, which `results.md` names.
        correct: which test images were right, zero-shot among the methods. Where they are known,
            intervals are those of the bootstrap over seeds and images.
    """
    summary = write_summary(results, folder)
    parquet = folder / PARQUET_FILE
    write_parquet(results, parquet)
    text = folder / MARKDOWN_FILE
    missing = f"\nWithout a result: {', '.join(without)}.\n" if without else ""
    write_atomically(text, markdown(results, correct) + missing)
    return [summary, parquet, text]
