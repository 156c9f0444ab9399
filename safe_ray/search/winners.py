"""What the search came to: a winner for each task, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from safe_ray.errors import InputError
from safe_ray.heads.artifact import load_head
from safe_ray.search.failures import Failure
from safe_ray.search.recording import Choice, choose
from safe_ray.search.searcher import BankSearcher
from safe_ray.training.job import OUTCOME

_NAMED = 4
_REMEDY = {
    "disk": "free some space, and give the same command again to go on",
    "memory": "ask for fewer trials at once with search.concurrent_trials, or for fewer heads in "
    "training at once with search.bank, and give the same command again",
    "input": "the same command tries again",
    "error": "the same command tries again",
    "died": "the same command tries again",
}


@dataclass(frozen=True)
class Decision:
    """The winners of a search.

    Attributes:
        choices: the choice of each task that has one, by task id.
        missing: why each other task has none, and what to do about it, by task id.
    """

    choices: Mapping[str, Choice]
    missing: Mapping[str, str]

    def without(self, damaged: Mapping[str, str]) -> Decision:
        """Return the decision without the tasks whose winners are damaged as soon as written."""
        return Decision(
            {task_id: c for task_id, c in self.choices.items() if task_id not in damaged},
            {
                **self.missing,
                **{
                    task_id: f"{reason}, a second time: check the disk, and give the same command "
                    "again"
                    for task_id, reason in damaged.items()
                },
            },
        )


def decide(sweep: str, searcher: BankSearcher) -> Decision:
    """Choose each task's winner; a task whose search was cut short has none yet."""
    choices: dict[str, Choice] = {}
    missing: dict[str, str] = {}
    for task_id, outcomes in searcher.outcomes.items():
        failures = searcher.given_up.get(task_id, {})
        stopped = searcher.stopped
        cut_short = stopped is not None and (
            not searcher.is_settled(task_id) or any(f.kind == "disk" for f in failures.values())
        )
        choice = None if cut_short else choose(sweep, outcomes)
        if choice is not None:
            choices[task_id] = choice
        elif stopped is not None and cut_short:
            missing[task_id] = f"the search was stopped ({remedied(stopped)})"
        elif failures:
            failure = next(iter(failures.values()))
            missing[task_id] = f"its banks could not be trained ({remedied(failure)})"
        else:
            count = sum(len(outcome.candidates) for outcome in outcomes)
            missing[task_id] = (
                f"all of its {count} candidates diverged (begin another sweep, with "
                "sweep=<name>, whose search.lr has smaller values)"
            )
    return Decision(choices, missing)


def remedied(failure: Failure) -> str:
    """Return the reason of a failure and what to do about it."""
    reason = failure.reason
    if failure.kind == "disk":
        # The sentence of a write that failed proposes another folder, which would begin anew.
        reason = reason.partition("): ")[0] + ")" if "): " in reason else reason
    return f"{reason}: {_REMEDY[failure.kind]}"


def discard_damaged(decision: Decision) -> dict[str, str]:
    """Remove the outcomes of winners whose files are damaged, so that their banks are trained.

    Returns:
        What is wrong with the files, by task id.
    """
    damaged = {}
    for task_id, choice in decision.choices.items():
        try:
            load_head(choice.winner.folder)
        except InputError as error:
            damaged[task_id] = str(error).partition(": fetch")[0]
            (choice.winner.folder.parent / OUTCOME).unlink(missing_ok=True)
    return damaged


def describe_missing(missing: Mapping[str, str], tasks: int) -> str:
    """Return which of so many tasks have no result, one line a reason."""
    by_reason: dict[str, list[str]] = {}
    for task_id, reason in missing.items():
        by_reason.setdefault(reason, []).append(task_id)
    lines = [f"{len(missing)} of {tasks} task{'s' * (tasks != 1)} without a result"]
    for reason, task_ids in by_reason.items():
        more = len(task_ids) - _NAMED
        names = ", ".join(task_ids[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"{names}: {reason}")
    return "; ".join(lines) + "."
