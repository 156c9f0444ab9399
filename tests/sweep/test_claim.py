"""A sweep's name: what takes it, what leaves it free, and what goes on under it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.errors import InputError
from safe_ray.sweep.claim import Beginning, claimed, was_begun

Load = Callable[..., SweepConfig]


@pytest.fixture
def load(tiny_config_dir: Path, tmp_path: Path) -> Load:
    def load(*overrides: str) -> SweepConfig:
        base = ("backbone=tiny", "tasks.datasets=[shapes]", f"storage={tmp_path}", "sweep=mine")
        return load_config((*base, *overrides), tiny_config_dir)

    return load


def begin(config: SweepConfig, anew: bool = False) -> Beginning:
    with claimed(config, anew) as claim:
        claim.take()
    return claim.beginning


def test_a_name_that_is_not_taken_leaves_nothing_behind(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights"), claimed(load("search.lr=0.1")):
        raise InputError("no weights.")
    assert list(tmp_path.iterdir()) == []
    with claimed(load("search.lr=0.2")) as claim:
        assert not claim.resumed


def test_folders_that_were_there_before_stay(load: Load, tmp_path: Path) -> None:
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    (tmp_path / "outputs" / "mine" / "notes.txt").touch()
    with claimed(load()):
        pass
    assert [file.name for file in tmp_path.rglob("*.txt")] == ["notes.txt"]


def test_the_same_sweep_goes_on_and_keeps_its_identity(load: Load) -> None:
    first = begin(load())
    with claimed(load("cluster.num_cpus=1")) as claim:
        assert claim.resumed
        assert claim.beginning == first


def test_another_configuration_is_refused_with_what_differs(load: Load) -> None:
    begin(load("training.batch_size=8"))
    words = r"training\.batch_size was 8, is 9.*sweep=<name>.*--restart"
    with (
        pytest.raises(InputError, match=words),
        claimed(load("training.batch_size=9")),
    ):
        pass
    assert was_begun(load())


def test_more_candidates_are_the_same_sweep_and_fewer_are_refused(load: Load) -> None:
    first = begin(load("search.candidates=6"))
    grown = begin(load("search.candidates=16"))
    assert grown == Beginning(first.id, (6, 16))
    assert begin(load("search.candidates=16")) == grown
    with (
        pytest.raises(InputError, match=r"16 candidates a task, and search\.candidates=6 is fewer"),
        claimed(load("search.candidates=6")),
    ):
        pass


def test_what_was_asked_for_and_refused_is_not_remembered(load: Load) -> None:
    begin(load("search.candidates=6"))
    with claimed(load("search.candidates=16")):
        pass
    with claimed(load("search.candidates=8")) as claim:
        assert claim.beginning.candidates == (6, 8)


def test_a_sweep_begun_anew_replaces_the_old_one_when_the_name_is_taken(load: Load) -> None:
    first = begin(load())
    folder = load().outputs
    (folder / "banks" / "task").mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    with claimed(load("training.batch_size=9"), anew=True) as claim:
        assert not claim.resumed
        assert (folder / "banks").exists()
        claim.take()
    assert claim.beginning.id != first.id
    assert sorted(file.name for file in folder.iterdir()) == [".lock", "config.json"]
    assert json.loads((folder / "config.json").read_text())["training"]["batch_size"] == 9


def test_a_refused_restart_keeps_the_old_sweep(load: Load) -> None:
    first = begin(load())
    with claimed(load("training.batch_size=9"), anew=True):
        pass
    assert begin(load()) == first


def test_a_second_driver_is_refused(load: Load) -> None:
    with claimed(load()) as claim:
        claim.take()
        with pytest.raises(InputError, match="being run by another process"), claimed(load()):
            pass
    assert was_begun(load())


def test_a_storage_that_cannot_be_written_is_named(load: Load, tmp_path: Path) -> None:
    blocker = tmp_path / "blocked"
    blocker.write_text("a file where a folder should be")
    with pytest.raises(InputError, match="blocked"), claimed(load(f"storage={blocker}")):
        pass


def test_a_damaged_beginning_is_named(load: Load) -> None:
    begin(load())
    (load().outputs / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"), claimed(load()):
        pass
