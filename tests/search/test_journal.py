"""The journal holds one study a task and group, survives a torn write and never repeats a trial."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from safe_ray.search.journal import FILE_NAME, Journal
from safe_ray.search.space import suggest_bank, trials_of_bank
from tests.search.outcomes import SPACE, outcome_of


def studies(folder: Path) -> dict[str, optuna.Study]:
    storage = JournalStorage(JournalFileBackend(str(folder / FILE_NAME)))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


def test_each_task_has_a_study_whose_best_is_its_best_head(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    candidates = suggest_bank(SPACE, [], [], 6, seed=0)
    for task in ("a", "b"):
        journal.record(SPACE, outcome_of(candidates, task_id=task))
    found = studies(tmp_path)
    assert set(found) == {"a-safe", "b-safe"}
    best = max(
        candidate.fits["safe"].point.accuracy for candidate in outcome_of(candidates).candidates
    )
    assert found["a-safe"].best_trial.user_attrs["accuracy"] == best


def test_recording_twice_adds_nothing(tmp_path: Path) -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 4, seed=0), failed=[2])
    expected = len(trials_of_bank(SPACE, outcome))
    for _ in range(2):
        journal = Journal(tmp_path)
        journal.record(SPACE, outcome)
        journal.record(SPACE, outcome)
    assert len(studies(tmp_path)["task-safe"].trials) == expected


def test_a_torn_last_line_and_a_stale_lock_are_mended(tmp_path: Path) -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 4, seed=0))
    Journal(tmp_path).record(SPACE, outcome)
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-40])
    Path(f"{path}.lock").touch()

    Journal(tmp_path).record(SPACE, outcome)

    trials = studies(tmp_path)["task-safe"].trials
    assert len(trials) == len(trials_of_bank(SPACE, outcome))


def test_what_others_write_to_the_journal_is_kept_in_step_with(tmp_path: Path) -> None:
    """A dashboard may add notes and delete studies while a sweep is running."""
    journal = Journal(tmp_path)
    candidates = suggest_bank(SPACE, [], [], 2, seed=0)
    for task in ("a", "b", "c"):
        journal.record(SPACE, outcome_of(candidates, task_id=task))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / FILE_NAME)))
    optuna.load_study(study_name="c-safe", storage=storage).set_user_attr("note", "look here")
    optuna.delete_study(study_name="b-safe", storage=storage)
    optuna.create_study(study_name="theirs", storage=storage)

    for task in ("a", "b", "d"):
        journal.record(SPACE, outcome_of(candidates, bank=1, task_id=task))

    banks = {
        name: {trial.user_attrs["bank"] for trial in study.trials}
        for name, study in studies(tmp_path).items()
    }
    assert banks == {
        "a-safe": {0, 1},
        "b-safe": {1},
        "c-safe": {0},
        "d-safe": {1},
        "theirs": set(),
    }
    tasks = {trial.user_attrs["task"] for trial in studies(tmp_path)["d-safe"].trials}
    assert tasks == {"d"}


def test_a_bank_of_which_a_part_was_written_is_completed(tmp_path: Path) -> None:
    outcome = outcome_of(suggest_bank(SPACE, [], [], 3, seed=0))
    journal = Journal(tmp_path)
    journal.record(SPACE, outcome)
    path = tmp_path / FILE_NAME
    whole = [trial.params for trial in studies(tmp_path)["task-safe"].trials]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))

    Journal(tmp_path).record(SPACE, outcome)

    assert [trial.params for trial in studies(tmp_path)["task-safe"].trials] == whole
