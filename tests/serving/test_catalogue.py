"""Which heads are served, and when they have moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.errors import InputError
from safe_ray.serving.catalogue import read_catalogue, stamp
from safe_ray.serving.settings import Settings
from safe_ray.specs import BackboneSpec
from tests.serving.heads import TASKS, datasets, write_sweep


def test_a_sweep_gives_all_of_its_tasks_and_a_head_its_own(
    tmp_path: Path, tiny_backbone: BackboneSpec
) -> None:
    sweep = write_sweep(tmp_path, tiny_backbone, datasets())
    found = read_catalogue([str(sweep)])
    assert tuple(found) == TASKS
    assert found[TASKS[0]].summary() == {
        "task": TASKS[0],
        "dataset": "shapes",
        "shots": 2,
        "seed": 1,
        "backbone": "tiny",
        "method": "SAFE",
        "alpha": 0.4,
        "classes": 3,
        "digest": found[TASKS[0]].digest,
    }
    alone = read_catalogue([str(found[TASKS[1]].folder)])
    assert {task: entry.digest for task, entry in alone.items()} == {
        TASKS[1]: found[TASKS[1]].digest
    }
    with pytest.raises(InputError, match="both the head of signs-2shot-seed1: serve one"):
        read_catalogue([str(sweep), str(found[TASKS[1]].folder)])


def test_heads_that_move_are_noticed(tmp_path: Path, tiny_backbone: BackboneSpec) -> None:
    named = [str(write_sweep(tmp_path, tiny_backbone, {"shapes": 1, "signs": 2}))]
    found = read_catalogue(named)
    first = stamp(named, found)
    assert stamp(named, found) == first
    # Another head of the same task, and a head that is written again in its place.
    write_sweep(tmp_path, tiny_backbone, {"shapes": 3, "signs": 2})
    second = stamp(named, found)
    assert second != first
    moved = read_catalogue(named)
    assert moved[TASKS[0]].digest != found[TASKS[0]].digest
    assert moved[TASKS[1]].digest == found[TASKS[1]].digest
    (moved[TASKS[1]].folder / "head.json").unlink()
    assert stamp(named, moved) != stamp(named, found)


def test_settings_travel_as_json() -> None:
    settings = Settings.from_json({"heads": ["outputs/a"], "timeout": 5})
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.heads == ("outputs/a",)
    assert Settings.from_json({"heads": "outputs/a", "timeout": "5"}) == settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": []}, "'heads' of the server is not right"),
        ({}, "'heads' of the server is not right"),
        ({"heads": ["a"], "timout": 3}, "'timout' .* Did you mean 'timeout'"),
        ({"heads": ["a"], "timeout": 0}, "'timeout'"),
        ({"heads": ["a"], "replicas": "many"}, "'replicas'"),
    ],
)
def test_a_setting_that_is_wrong_is_told_in_a_sentence(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings.from_json(values)
