"""What the search came to: a winner for each task, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safe_ray.errors import InputError
from safe_ray.heads.artifact import load_head
from safe_ray.search.choosing import Choice, ResultId, choose
from safe_ray.search.failures import Failure
from safe_ray.search.searcher import BankSearcher, StudyId
from safe_ray.training.outcome import OUTCOME

_NAMED = 4
_REMEDY = {
    "disk": "free some space, and give the same command again to go on",
    "memory": "ask for fewer trials at once with search.concurrent_trials, or for fewer heads in "
    "training at once with search.bank, and give the same command again",
    "input": "the same command tries again",
    "error": "the same command tries again",
    "died": "the same command tries again",
    "node": "the same command tries again",
    "blind": "see to it that the nodes see storage, and give the same command again",
}


@dataclass(frozen=True)
class Decision:
    """The winners of a search.

    Attributes:
        choices: the choice of each task and method that has one.
        missing: why each other has none, and what to do about it.
    """

    choices: Mapping[ResultId, Choice]
    missing: Mapping[ResultId, str]

    def without(self, damaged: Mapping[ResultId, str]) -> Decision:
        """Return the decision without the winners that are damaged as soon as written."""
        return Decision(
            {result: c for result, c in self.choices.items() if result not in damaged},
            {
                **self.missing,
                **{
                    result: f"{reason}, a second time: check the disk, and give the same command "
                    "again"
                    for result, reason in damaged.items()
                },
            },
        )


def decide(sweep: str, searcher: BankSearcher) -> Decision:
    """Choose the winner of each task and method; a search that was cut short has none yet."""
    choices: dict[ResultId, Choice] = {}
    missing: dict[ResultId, str] = {}
    for study, outcomes in searcher.outcomes.items():
        cut_short = _cut_short(searcher, study)
        for method in searcher.methods(study):
            choice = None if cut_short else choose(sweep, outcomes, method)
            result = ResultId(study.task_id, method.name)
            if choice is not None:
                choices[result] = choice
            else:
                count = sum(len(outcome.candidates) for outcome in outcomes)
                missing[result] = _why_none(searcher, study, count, cut_short)
    return Decision(choices, missing)


def _cut_short(searcher: BankSearcher, study: StudyId) -> bool:
    failures = searcher.given_up.get(study, {})
    return searcher.stopped is not None and (
        not searcher.is_settled(study) or any(f.kind == "disk" for f in failures.values())
    )


def _why_none(searcher: BankSearcher, study: StudyId, candidates: int, cut_short: bool) -> str:
    failures = searcher.given_up.get(study, {})
    if searcher.stopped is not None and cut_short:
        return f"the search was stopped ({remedied(searcher.stopped)})"
    if failures:
        failure = next(iter(failures.values()))
        return f"its banks could not be trained ({remedied(failure)})"
    return (
        f"all of its {candidates} candidates diverged (begin another sweep, with "
        "sweep=<name>, whose search.lr has smaller values)"
    )


def remedied(failure: Failure) -> str:
    """Return the reason of a failure and what to do about it."""
    reason = failure.reason
    if failure.kind == "disk":
        # The sentence of a write that failed proposes another folder, which would begin anew.
        reason = reason.partition("): ")[0] + ")" if "): " in reason else reason
    return f"{reason}: {_REMEDY[failure.kind]}"


def discard_damaged(decision: Decision) -> dict[ResultId, str]:
    """Remove the outcomes of winners whose files are damaged, so that their banks are trained.

    Returns:
        What is wrong with the files.
    """
    damaged = {}
    for result, choice in decision.choices.items():
        folder = choice.winner.folder
        if folder is None:
            continue
        try:
            load_head(folder)
        except InputError as error:
            damaged[result] = str(error).partition(": fetch")[0]
            (folder.parent / OUTCOME).unlink(missing_ok=True)
    return damaged


def describe_missing(missing: Mapping[str, str], tasks: int, methods: int = 1) -> str:
    """Return which of so many tasks have no result, one line a reason.

    Args:
        missing: the reason of each, by its name.
        tasks: how many there are.
        methods: how many results each should have.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in missing.items():
        by_reason.setdefault(reason, []).append(name)
    total, noun = (tasks, "task") if methods == 1 else (tasks * methods, "task and method")
    if total != 1:
        noun = noun.replace("task", "tasks").replace("method", "methods")
    lines = [f"{len(missing)} of {total} {noun} without a result"]
    for reason, names in by_reason.items():
        more = len(names) - _NAMED
        some = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{some}: {reason}")
    return "; ".join(lines) + "."
