"""Which of the given images decide, where some of them belong together."""

from __future__ import annotations

import numpy as np
import pytest

from safe_ray.classifier.dividing import checked_groups, deciding_of, validation_rows
from safe_ray.errors import InputError


def films(classes: int, each: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups of so many films of a class, with so many frames each."""
    labels = np.repeat(np.arange(classes), each * frames)
    return labels, np.repeat(np.arange(classes * each), frames)


@pytest.mark.parametrize("shots", [1, 2, 4, None])
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_trains_or_decides_and_every_class_does_both(
    shots: int | None, frames: int, seed: int
) -> None:
    labels, groups = films(5, 4, frames)
    decides = validation_rows(labels, groups, shots, seed)
    assert not set(groups[decides]) & set(groups[~decides])
    for label in range(5):
        left = int((~decides & (labels == label)).sum())
        assert 0 < left < 4 * frames
        assert left >= min(shots or 1, 4 * frames - frames)


def test_the_seed_draws_them() -> None:
    labels, groups = films(3, 6, 2)
    first = validation_rows(labels, groups, 2, 1)
    np.testing.assert_array_equal(first, validation_rows(labels, groups, 2, 1))
    assert any((first != validation_rows(labels, groups, 2, seed)).any() for seed in range(2, 6))


def test_of_all_images_about_a_fifth_decides() -> None:
    labels, groups = films(4, 50, 1)
    assert validation_rows(labels, groups, None, 1).mean() == pytest.approx(0.2)


def test_a_class_of_one_group_trains_alone() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    groups = np.array([0, 0, 0, 1, 2, 3])
    decides = validation_rows(labels, groups, 2, 1)
    assert not decides[:3].any()
    assert decides[3:].sum() == 1


@pytest.mark.parametrize("seed", range(8))
def test_a_group_of_several_classes_is_kept_together(seed: int) -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    groups = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    decides = validation_rows(labels, groups, 1, seed)
    assert not set(groups[decides]) & set(groups[~decides])
    assert set(labels[~decides]) == {0, 1, 2}


def test_groups_that_leave_nothing_to_decide_by_are_refused() -> None:
    with pytest.raises(InputError, match=r"6 images are of 2 groups.*validation_data"):
        validation_rows(*films(2, 1, 3), 2, 1)
    with pytest.raises(InputError, match="There are 3 groups for 4 images"):
        checked_groups(["a", "b", "c"], 4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"groups": [1], "validation_data": ([], [])}, "give one of them"),
        ({"groups": [1], "labels": None}, "groups goes with images and their labels"),
        ({"validation_data": ([], []), "labels": None}, "of a folder, those in 'val' decide"),
        ({"groups": [1], "validation": "cross"}, "validation='cross' says which images decide"),
        ({"validation_data": [1, 2, 3]}, "is not two things"),
        ({"validation_data": ([], [])}, "validation_data has no images"),
    ],
)
def test_what_contradicts_itself_is_named(asked: dict[str, object], said: str) -> None:
    usual = {"labels": ["a"], "groups": None, "validation_data": None, "validation": "auto"}
    with pytest.raises(InputError, match=said):
        deciding_of(**{"shots": 1, "seed": 1, **usual, **asked})  # type: ignore[arg-type]
