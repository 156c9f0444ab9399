"""`report.html` of a sweep, made of the files in its folder alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safe_ray.data.locations import first_line
from safe_ray.files import write_atomically
from safe_ray.report.confusion import read_confusions
from safe_ray.report.correct import read_correct
from safe_ray.report.html.page import REPORT_FILE, Page, render
from safe_ray.report.html.story import Candidate, Curve, TaskStory, tasks_of
from safe_ray.report.html.tags import Child
from safe_ray.report.looks import read_looks
from safe_ray.report.summary import TaskResult, in_order, read_summary, task_id
from safe_ray.specs import KnobRow
from safe_ray.training.outcome import OUTCOME, BankOutcome, CandidateOutcome


def make_page(
    folder: Path, out: Path | None = None, missing: Sequence[str] = (), extra: Child = None
) -> Path:
    """Write the report of a sweep as a page, and return its path.

    Args:
        folder: the sweep's.
        out: the file; None is `report.html` in the folder.
        missing: the names of tasks without a result.
        extra: markup that follows the table.

    Raises:
        InputError: the folder is of no sweep that has ended, one of its files is damaged, or the
            page cannot be written.
    """
    results = in_order(read_summary(folder))
    page = Page(
        f"Sweep {folder.name}",
        results,
        stories(folder, results),
        read_correct(folder),
        missing,
        extra,
    )
    file = folder / REPORT_FILE if out is None else out
    write_atomically(file, render(page))
    return file


def try_page(folder: Path, missing: Sequence[str] = ()) -> Path | None:
    """Write the page of a sweep that ends, or say in a sentence why there is none.

    A sweep has its results by then, and nothing that goes wrong here may cost them.
    """
    try:
        return make_page(folder, missing=missing)
    # Whatever it is.
    except Exception as error:
        print(
            f"The report could not be made as a page ({first_line(error)}): the tables are whole, "
            f"and `python -m safe_ray.report {folder}` tries again.",
            file=sys.stderr,
        )
        return None


def stories(folder: Path, results: Sequence[TaskResult]) -> list[TaskStory]:
    """Return what the files of a sweep tell of each task.

    Raises:
        InputError: one of them is damaged.
    """
    confusions = read_confusions(folder)
    looks = read_looks(folder)
    found = []
    for of_task in tasks_of(results):
        first = of_task[0]
        place = (first.dataset, first.shots, first.seed)
        found.append(
            TaskStory(
                of_task,
                _candidates(folder, of_task),
                {c.method: c for c in confusions if (c.dataset, c.shots, c.seed) == place},
                [one for one in looks if (one.dataset, one.shots, one.seed) == place],
            )
        )
    return found


def _candidates(folder: Path, results: Sequence[TaskResult]) -> Mapping[str, Sequence[Candidate]]:
    """Return the candidates of each method of a task, from the outcomes of its banks."""
    banks = folder / "banks" / task_id(results[0])
    outcomes = []
    for file in sorted(banks.glob(f"*/bank-*/{OUTCOME}")):
        outcome = BankOutcome.load(file.parent)
        if outcome is not None:
            outcomes.append(outcome)
    found = {}
    for result in results:
        of_method = [
            _candidate(candidate, result)
            for outcome in outcomes
            if any(result.method in candidate.fits for candidate in outcome.candidates)
            for candidate in outcome.candidates
        ]
        found[result.method] = _marked(of_method, result)
    return found


def _candidate(outcome: CandidateOutcome, result: TaskResult) -> Candidate:
    fit = outcome.fits.get(result.method)
    if fit is None:
        return Candidate(outcome.values, {}, None, losses=outcome.losses)
    by_class = result.protocol.metric == "mean_per_class"
    return Candidate(
        outcome.values,
        fit.at,
        fit.point.mean_per_class if by_class else fit.point.accuracy,
        {knob: _curve(row, by_class) for knob, row in fit.rows.items()},
        outcome.losses,
    )


def _curve(row: KnobRow, by_class: bool) -> Curve:
    return Curve(row.values, row.mean_per_class if by_class else row.accuracy, row.nll)


def _marked(candidates: Sequence[Candidate], result: TaskResult) -> list[Candidate]:
    """Mark the first candidate that has the values of the result, which is the winner."""
    marked = list(candidates)
    for place, one in enumerate(marked):
        if one.accuracy is not None and {**one.values, **one.at} == dict(result.best):
            marked[place] = Candidate(
                one.values, one.at, one.accuracy, one.curves, one.losses, chosen=True
            )
            break
    return marked
