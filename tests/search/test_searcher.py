"""Banks are handed out in turn, seen in order, lent to later tasks, and taken over from disk."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from safe_ray.search.failures import Failure
from safe_ray.search.searcher import (
    FAILURE,
    JOB,
    SELECTOR,
    BankSearcher,
    SearchOptions,
    Study,
    StudyId,
    size_of_first_bank,
)
from safe_ray.specs import Task
from safe_ray.training.job import BankJob
from safe_ray.training.outcome import OUTCOME, BankOutcome
from tests.search.outcomes import GROUP, outcome_of

TASKS = [Task("pets", 1, 1), Task("cars", 2, 1), Task("dtd", 4, 2)]
MANY = [Task(name, shots, 1) for shots in (1, 2, 4) for name in ("pets", "cars", "dtd")]


def options(**changes: int) -> SearchOptions:
    values = {
        "candidates": 7,
        "bank": 2,
        "banks_in_flight": 1,
        "seed": 0,
        "checkpoint_seconds": 60.0,
    }
    return SearchOptions(**{**values, **changes})


def searcher(
    folder: Path,
    seen: list[tuple[str, int]] | None = None,
    tasks: Sequence[Task] = TASKS,
    **changes: int,
) -> BankSearcher:
    def on_bank(job: BankJob, outcome: BankOutcome) -> None:
        assert (job.task_id, job.bank) == (outcome.task_id, outcome.bank)
        if seen is not None:
            seen.append((job.task_id, job.bank))

    return BankSearcher(folder, studies_of(tasks), options(**changes), on_bank)


def studies_of(tasks: Sequence[Task]) -> list[Study]:
    return [Study.of(task, GROUP) for task in tasks]


def study_of(job: BankJob) -> StudyId:
    return StudyId(job.task_id, job.group)


def finish(job: BankJob) -> None:
    outcome_of(job.candidates, job.bank, job.task_id, group=job.group).save(job.folder)


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
        for path in sorted(folder.glob("banks/*/*/*/job.json"))
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


@pytest.mark.parametrize("stop_after", [2, 7, 9])
def test_a_sweep_that_is_given_more_candidates_keeps_its_banks(
    tmp_path: Path, stop_after: int
) -> None:
    """However far it had come by then, the new candidates are the same."""
    ended, stopped = tmp_path / "ended", tmp_path / "stopped"
    more = replace(options(), candidates=9, before=(5,))

    def grow(folder: Path) -> BankSearcher:
        search = BankSearcher(folder, studies_of(TASKS), more, lambda job, outcome: None)
        drain(search, random.Random(2), slots=2)
        return search

    drain(searcher(ended, candidates=5), random.Random(0), slots=2)
    before = candidates_on_disk(ended)
    for banks in grow(ended).outcomes.values():
        assert [len(bank.candidates) for bank in banks] == [2, 2, 1, 2, 2]
    assert before.items() <= candidates_on_disk(ended).items()

    drain(searcher(stopped, candidates=5), random.Random(1), slots=2, stop_after=stop_after)
    grow(stopped)
    assert candidates_on_disk(stopped) == candidates_on_disk(ended)


def test_outcomes_stay_on_disk(tmp_path: Path) -> None:
    """A sweep of many tasks would otherwise fill the driver's memory."""

    def in_memory() -> int:
        gc.collect()
        return sum(isinstance(thing, BankOutcome) for thing in gc.get_objects())

    before = in_memory()
    search = BankSearcher(tmp_path, studies_of(MANY), options(), lambda job, outcome: None)
    assert drain(search, random.Random(0), slots=2) == 4 * len(MANY)
    assert in_memory() == before
    assert [len(search.outcomes[StudyId(task.id, "safe")]) for task in MANY] == [4] * len(MANY)
    with pytest.raises(KeyError):
        search.outcomes[StudyId("nobody", "safe")]


def test_tasks_take_turns(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    handed_out = [search.suggest(f"trial-{i}")["job"] for i in range(3)]
    assert [job["task_id"] for job in handed_out] == [t.id for t in TASKS]
    assert search.suggest("trial-3") is None


def test_a_task_may_have_several_banks_in_flight(tmp_path: Path) -> None:
    search = searcher(tmp_path, banks_in_flight=2)
    jobs = [search.suggest(f"trial-{i}")["job"] for i in range(6)]
    assert sorted((j["task_id"], j["bank"]) for j in jobs) == sorted(
        (task.id, bank) for task in TASKS for bank in (0, 1)
    )
    assert search.suggest("trial-6") is None


def test_a_trial_without_a_result_is_given_up_and_the_task_goes_on(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    job = BankJob.from_json(search.suggest("trial-0")["job"])
    search.on_trial_complete("trial-0", None, error=True)
    assert list(search.given_up) == [study_of(job)]
    drain(search, random.Random(0), slots=1)
    assert search.complete
    assert [bank.bank for bank in search.outcomes[study_of(job)]] == [1, 2, 3]
    # The next run of the sweep tries it again.
    again = searcher(tmp_path)
    assert not again.complete
    assert BankJob.from_json(again.suggest("trial-0")["job"]) == job


@pytest.mark.parametrize("harm", ["torn", "altered"])
def test_a_damaged_file_is_made_anew_and_that_is_said(tmp_path: Path, harm: str) -> None:
    whole, harmed = tmp_path / "whole", tmp_path / "harmed"
    drain(searcher(whole), random.Random(0), slots=1)
    drain(searcher(harmed), random.Random(0), slots=1)
    outcome, unfinished = (
        BankJob(str(harmed), TASKS[place].id, "safe", bank, ()).folder
        for place, bank in ((0, 1), (1, 2))
    )
    (unfinished / OUTCOME).unlink()
    for file in (outcome / OUTCOME, outcome / JOB, unfinished / JOB):
        text = file.read_text()
        digit = text.index("0.", text.index("lr")) + 2
        other = str(9 - int(text[digit]))
        file.write_text(
            text[: len(text) // 2] if harm == "torn" else text[:digit] + other + text[digit + 1 :]
        )

    said: list[str] = []
    again = BankSearcher(
        harmed, studies_of(TASKS), options(), lambda job, outcome: None, say=said.append
    )
    assert not again.complete
    assert drain(again, random.Random(0), slots=1) == 2
    harmed_files = {str(outcome / OUTCOME), str(outcome / JOB), str(unfinished / JOB)}
    assert {line.split(" was damaged")[0] for line in said} == harmed_files
    assert len(said) == 3
    assert candidates_on_disk(harmed) == candidates_on_disk(whole)
    assert size_of_first_bank(harmed) == 2


def test_the_candidates_of_a_finished_bank_outlive_the_file_that_proposed_them(
    tmp_path: Path,
) -> None:
    drain(searcher(tmp_path), random.Random(0), slots=1)
    for file in tmp_path.glob("banks/*/*/*/job.json"):
        file.unlink()
    seen: list[tuple[str, int]] = []
    assert searcher(tmp_path, seen).complete
    assert len(seen) == 12


def reported(failure: Failure) -> dict[str, str]:
    """Return what Tune hands a searcher of what a trial has reported."""
    return flatten_dict({FAILURE: failure.to_json()})


def test_a_full_disk_ends_the_search_and_other_failures_do_not(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    jobs = {name: BankJob.from_json(search.suggest(name)["job"]) for name in ("a", "b", "c")}
    search.on_trial_result("a", reported(Failure("error", "ValueError: no")))
    search.on_trial_complete("a", error=True)
    assert search.stopped is None
    assert search.given_up[study_of(jobs["a"])] == {0: Failure("error", "ValueError: no")}
    assert search.suggest("d") != Searcher.FINISHED

    full = Failure("disk", "No space left on device")
    search.on_trial_result("b", reported(full))
    search.on_trial_complete("b")
    assert search.stopped == full
    assert search.suggest("e") == Searcher.FINISHED
    finish(jobs["c"])
    search.on_trial_complete("c")
    assert len(search.outcomes[study_of(jobs["c"])]) == 1
    assert not search.is_settled(study_of(jobs["c"]))


def test_a_folder_that_cannot_be_written_ends_the_search(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    (tmp_path / "banks").write_text("a file where a folder should be")
    assert search.suggest("trial-0") == Searcher.FINISHED
    assert search.stopped is not None
    assert str(tmp_path / "banks") in search.stopped.reason


def fail(search: BankSearcher, trial: str, failure: Failure | None) -> BankJob:
    """Hand out the next bank, and let it fail: with what the trial reports, or without a word."""
    job = BankJob.from_json(search.suggest(trial)["job"])
    if failure is not None:
        search.on_trial_result(trial, reported(failure))
    search.on_trial_complete(trial, error=True)
    return job


def test_a_bank_is_tried_as_often_as_was_asked_for_and_given_up_with_its_last_failure(
    tmp_path: Path,
) -> None:
    search = searcher(tmp_path, max_failures=2)
    died = Failure("died", "its process died")
    search.death = lambda trial_id: died
    jobs = [fail(search, f"t{i}", f) for i, f in enumerate([Failure("error", "no"), None, None])]
    assert jobs[0] == jobs[1] == jobs[2]
    assert search.given_up[study_of(jobs[0])] == {0: died}
    assert BankJob.from_json(search.suggest("t3")["job"]).task_id != jobs[0].task_id


def test_a_node_that_is_lost_does_not_count(tmp_path: Path) -> None:
    said: list[str] = []
    search = BankSearcher(
        tmp_path, studies_of(TASKS[:1]), options(), lambda job, outcome: None, say=said.append
    )
    lost = Failure("node", "its node died")
    first = fail(search, "t0", lost)
    assert [fail(search, f"t{i}", lost) for i in range(1, 15)] == [first] * 14
    assert not search.given_up
    assert len(said) == 15
    assert said[0] == (
        f"{first.name}: its node died; it is tried again from its last checkpoint (this is no "
        "failure of its own)."
    )
    # One that outlives no node may be what ends them.
    for i in range(15, 21):
        fail(search, f"t{i}", lost)
    assert search.given_up[study_of(first)] == {0: lost}


def test_a_node_that_does_not_see_the_storage_is_left_out_of_what_follows(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    left_out: list[str] = []
    search.on_blind = left_out.append
    search.selector = lambda: {"without": ",".join(left_out)}
    first = search.suggest("t0")
    blind = Failure("blind", "the node 10.0.0.7 does not see the storage", "abc")
    search.death = lambda trial_id: blind
    search.on_trial_complete("t0", error=True)
    again = search.suggest("t1")
    assert again["job"] == first["job"]
    assert (first[SELECTOR], again[SELECTOR]) == ({"without": ""}, {"without": "abc"})
    assert not search.given_up


def test_no_search_is_over_while_a_bank_that_may_fail_is_in_training(tmp_path: Path) -> None:
    search = searcher(tmp_path, tasks=TASKS[:1], candidates=2, max_failures=1)
    job = BankJob.from_json(search.suggest("t0")["job"])
    assert search.suggest("t1") is None
    search.on_trial_complete("t0", error=True)
    assert BankJob.from_json(search.suggest("t1")["job"]) == job
    finish(job)
    search.on_trial_complete("t1")
    assert search.suggest("t2") == Searcher.FINISHED
