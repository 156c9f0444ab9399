"""Banks are handed out in turn, seen in order, and taken over from disk."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher

from safe_ray.search.searcher import BankSearcher, SearchOptions
from safe_ray.training.job import BankJob, BankOutcome
from tests.search.outcomes import SPACE, outcome_of

TASKS = ["pets-1shot-seed1", "cars-2shot-seed1", "dtd-4shot-seed2"]


def options(**changes: int) -> SearchOptions:
    values = {
        "candidates": 7,
        "bank": 2,
        "banks_in_flight": 1,
        "row_points": 3,
        "seed": 0,
        "checkpoint_seconds": 60.0,
    }
    return SearchOptions(**{**values, **changes})


def searcher(
    folder: Path, seen: list[tuple[str, int]] | None = None, **changes: int
) -> BankSearcher:
    def on_bank(job: BankJob, outcome: BankOutcome) -> None:
        assert (job.task_id, job.bank) == (outcome.task_id, outcome.bank)
        if seen is not None:
            seen.append((job.task_id, job.bank))

    return BankSearcher(folder, TASKS, SPACE, options(**changes), on_bank)


def finish(job: BankJob) -> None:
    outcome_of(job.candidates, job.bank, job.task_id).save(job.folder)


def drain(search: BankSearcher, order: random.Random, slots: int, stop_after: int = 10**6) -> int:
    """Run the search as a cluster with `slots` places would, ending trials in a random order."""
    running: dict[str, BankJob] = {}
    trial = ended = 0
    while ended < stop_after:
        while len(running) < slots:
            config = search.suggest(f"trial-{trial}")
            if config == Searcher.FINISHED or config is None:
                break
            running[f"trial-{trial}"] = BankJob.from_json(config["job"])
            trial += 1
        if not running:
            break
        name = order.choice(sorted(running))
        finish(running.pop(name))
        search.on_trial_complete(name, {"finished": 1})
        ended += 1
    return ended


def candidates_on_disk(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.glob("banks/*/*/job.json"))
    }


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), slots=st.integers(1, 5), in_flight=st.integers(1, 3))
def test_suggestions_do_not_depend_on_the_timing_of_trials(
    tmp_path_factory: pytest.TempPathFactory, seed: int, slots: int, in_flight: int
) -> None:
    results = []
    for chance in (seed, seed + 1):
        folder = tmp_path_factory.mktemp("sweep")
        search = searcher(folder, banks_in_flight=in_flight)
        drain(search, random.Random(chance), slots)
        assert search.complete
        results.append(candidates_on_disk(folder))
    assert results[0] == results[1]


@pytest.mark.parametrize("stop_after", [0, 1, 5, 11])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path: Path, stop_after: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    drain(searcher(whole), random.Random(0), slots=2)

    ended = drain(searcher(killed), random.Random(0), slots=2, stop_after=stop_after)
    seen: list[tuple[str, int]] = []
    second = searcher(killed, seen)
    assert len(seen) == ended
    assert drain(second, random.Random(1), slots=2) == 12 - ended
    assert len(set(seen)) == len(seen) == 12
    assert candidates_on_disk(killed) == candidates_on_disk(whole)


def test_each_task_gets_its_candidates_and_no_more(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    drain(search, random.Random(0), slots=4)
    for banks in search.outcomes.values():
        assert [len(bank.candidates) for bank in banks] == [2, 2, 2, 1]


def test_tasks_take_turns(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    handed_out = [search.suggest(f"trial-{i}")["job"] for i in range(3)]
    assert [job["task_id"] for job in handed_out] == TASKS
    assert search.suggest("trial-3") is None


def test_a_task_may_have_several_banks_in_flight(tmp_path: Path) -> None:
    search = searcher(tmp_path, banks_in_flight=2)
    jobs = [search.suggest(f"trial-{i}")["job"] for i in range(6)]
    assert sorted((j["task_id"], j["bank"]) for j in jobs) == sorted(
        (task, bank) for task in TASKS for bank in (0, 1)
    )
    assert search.suggest("trial-6") is None


def test_a_trial_without_a_result_is_given_up_and_the_task_goes_on(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    job = BankJob.from_json(search.suggest("trial-0")["job"])
    search.on_trial_complete("trial-0", None, error=True)
    assert list(search.given_up) == [job.task_id]
    drain(search, random.Random(0), slots=1)
    assert search.complete
    assert [bank.bank for bank in search.outcomes[job.task_id]] == [1, 2, 3]
    # The next run of the sweep tries it again.
    again = searcher(tmp_path)
    assert not again.complete
    assert BankJob.from_json(again.suggest("trial-0")["job"]) == job
