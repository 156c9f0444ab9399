"""One task's misfortune is told with its reason, and is no other task's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from safe_ray.heads.artifact import WEIGHTS_FILE, load_head
from safe_ray.search.choosing import ResultId, choose
from safe_ray.search.failures import Failure, Kind
from safe_ray.search.searcher import FAILURE, BankSearcher
from safe_ray.sweep.winners import Decision, decide, describe_missing, discard_damaged, remedied
from safe_ray.training.job import BankJob, run_bank
from safe_ray.training.outcome import OUTCOME, BankOutcome
from tests.search.outcomes import SAFE, outcome_of
from tests.search.test_searcher import TASKS, options, studies_of
from tests.training.tasks import write_task

PETS, CARS, DTD = (ResultId(task.id, "safe") for task in TASKS)


def search(folder: Path, ends: dict[ResultId, Any]) -> BankSearcher:
    """Run every trial to the end that its task is given: `finished`, `diverged` or a failure."""
    searcher = BankSearcher(folder, studies_of(TASKS), options(), lambda job, outcome: None)
    for trial in map(str, range(100)):
        config = searcher.suggest(trial)
        if config == Searcher.FINISHED:
            break
        job = BankJob.from_json(config["job"])
        end = ends.get(ResultId(job.task_id, "safe"), "finished")
        if isinstance(end, Failure):
            searcher.on_trial_result(trial, flatten_dict({FAILURE: end.to_json()}))
        else:
            failed = range(len(job.candidates)) if end == "diverged" else ()
            outcome_of(job.candidates, job.bank, job.task_id, failed).save(job.folder)
        searcher.on_trial_complete(trial)
    return searcher


def test_the_other_tasks_have_their_winners(tmp_path: Path) -> None:
    error = Failure("error", "ValueError: shapes differ")
    decision = decide(str(tmp_path), search(tmp_path, {PETS: "diverged", DTD: error}))
    assert list(decision.choices) == [CARS]
    assert "all of its 7 candidates diverged" in decision.missing[PETS]
    assert "search.lr" in decision.missing[PETS]
    assert "ValueError: shapes differ" in decision.missing[DTD]
    assert "search.lr" not in decision.missing[DTD]


def test_a_search_that_a_full_disk_ended_has_no_winner_for_a_task_half_searched(
    tmp_path: Path,
) -> None:
    full = Failure("disk", "Could not write /x (No space left on device): free some space there")
    searcher = search(tmp_path, {DTD: full})
    decision = decide(str(tmp_path), searcher)
    assert decision.choices == {}
    assert set(decision.missing) == {PETS, CARS, DTD}
    assert len(set(decision.missing.values())) == 1
    assert decision.missing[CARS].endswith(
        "Could not write /x (No space left on device): free some space, and give the same command "
        "again to go on)"
    )


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_of_failure_has_a_remedy(kind: Kind) -> None:
    assert remedied(Failure(kind, "it failed")).startswith("it failed: ")


@pytest.mark.parametrize(("tasks", "beginning"), [(1, "1 of 1 task w"), (9, "1 of 9 tasks w")])
def test_what_is_missing_is_one_line(tasks: int, beginning: str) -> None:
    assert describe_missing({"pets": "all diverged"}, tasks).startswith(beginning)


def test_tasks_that_share_a_reason_are_told_together() -> None:
    missing = {f"task-{i}": "all diverged" for i in range(6)} | {"other": "out of memory"}
    assert describe_missing(missing, 9) == (
        "7 of 9 tasks without a result; task-0, task-1, task-2, task-3 and 2 more: all diverged; "
        "other: out of memory."
    )


def test_the_bank_of_a_damaged_winner_is_to_be_trained_again(tmp_path: Path) -> None:
    job = write_task(tmp_path)
    run_bank(job, torch.device("cpu"))
    outcome = BankOutcome.load(job.folder)
    assert outcome is not None
    choice = choose(job.sweep, [outcome], SAFE)
    assert choice is not None
    assert choice.winner.folder is not None
    decision = Decision({choice.id: choice}, {})
    assert discard_damaged(decision) == {}
    assert (job.folder / OUTCOME).exists()

    weights = choice.winner.folder / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0xFF
    weights.write_bytes(content)
    (reason,) = discard_damaged(decision).values()
    assert str(weights) in reason
    assert not (job.folder / OUTCOME).exists()
    run_bank(job, torch.device("cpu"))
    load_head(choice.winner.folder)
