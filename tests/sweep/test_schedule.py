"""Many support images make epochs long: candidates get fewer of them, and of views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from safe_ray.compose import load_config
from safe_ray.config import SweepConfig
from safe_ray.search.groups import for_task, groups_of
from safe_ray.specs import ALL_SHOTS, Range, Task
from safe_ray.sweep.schedule import most_epochs, views_of

EVERYTHING, FEW = Task("emoji_kinds", ALL_SHOTS, 1), Task("emoji_kinds", 16, 1)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SweepConfig]:
    return lambda *settings: load_config([f"storage={tmp_path}", *settings])


@pytest.mark.parametrize(
    ("support", "epochs"), [(32, 1000), (1456, 21), (20_000, 1), (1_000_000, 1)]
)
def test_all_images_are_a_thousand_steps(load, support: int, epochs: int) -> None:
    assert most_epochs(load(), EVERYTHING, support) == epochs
    assert most_epochs(load(), FEW, support) is None


def test_the_bound_can_be_chosen_for_any_task(load) -> None:
    config = load("search.max_steps=200")
    assert most_epochs(config, FEW, 1456) == 4
    assert views_of(config, FEW, 1456) == 4
    assert views_of(config, FEW, 32) == 8


@pytest.mark.parametrize(("most", "expected"), [(None, (10, 50)), (21, (10, 21)), (90, (10, 50))])
def test_epochs_are_searched_up_to_the_bound(load, most, expected) -> None:
    (group,) = groups_of(load())
    epochs = for_task(group, FEW.shots, most).space.quantities["epochs"]
    assert isinstance(epochs, Range)
    assert (epochs.low, epochs.high, epochs.log, epochs.integer) == (*expected, True, True)


def test_a_bound_below_the_range_is_what_all_candidates_have(load) -> None:
    (group,) = groups_of(load())
    space = for_task(group, FEW.shots, 3).space
    assert space.complete({"lr": 1e-3, "weight_decay": 0.01})["epochs"] == 3


def test_epochs_over_features_alone_are_not_bounded(load) -> None:
    (group,) = groups_of(load("method=linear_probe"))
    assert for_task(group, 100.0, 3).space.quantities["epochs"] == 100


def test_a_quantity_of_one_over_the_shots_takes_the_images_a_class(load) -> None:
    (group,) = groups_of(load("method=prolip"))
    found = for_task(group, 250.0).space.quantities
    assert found["distance_penalty"] == 0.004
