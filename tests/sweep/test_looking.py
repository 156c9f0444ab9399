"""Which test images are shown, and where the poolings look in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.heads.artifact import load_head
from safe_ray.search.choosing import Winner
from safe_ray.sweep.looking import Wanted, chosen_rows, images_a_task
from safe_ray.sweep.testing import run_tests
from safe_ray.training.facts import TaskFacts, load_pooling
from safe_ray.training.job import run_bank
from tests.heads.test_bank import CLASSES, GRID, POOL
from tests.training.tasks import SAFE, TASK, device, write_task


def test_telling_images_come_first_and_each_class_has_as_many() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    before = np.array([1, 1, 0, 1, 0, 0, 0, 0], bool)
    after = np.array([1, 0, 1, 1, 0, 0, 0, 1], bool)
    assert chosen_rows(labels, before, after, 2, 4) == [2, 1, 7, 4]
    assert chosen_rows(labels, before, after, 2, 7) == [2, 1, 0, 7, 4, 5]


def test_of_too_many_classes_the_worst_and_the_best_are_shown() -> None:
    labels = np.repeat(np.arange(6), 4)
    after = np.concatenate([np.arange(4) < right for right in (2, 4, 1, 3, 0, 2)])
    rows = chosen_rows(labels, after, after, 6, 4)
    assert labels[rows].tolist() == [1, 2, 3, 4]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=40),
    st.integers(0, 30),
)
def test_no_image_is_chosen_twice_and_none_too_many(
    samples: list[tuple[int, bool, bool]], images: int
) -> None:
    labels = np.array([s[0] for s in samples], int)
    before, after = (np.array([s[n] for s in samples], bool) for n in (1, 2))
    rows = chosen_rows(labels, before, after, 6, images)
    assert len(set(rows)) == len(rows) <= images
    assert bool(rows) == bool(samples and images)


def test_all_tasks_together_have_a_bounded_number() -> None:
    assert [images_a_task(tasks) for tasks in (1, 12, 50, 300, 1000)] == [24, 24, 6, 1, 0]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = write_task(tmp_path_factory.mktemp("looking"))
    run_bank(job, device())
    return Path(job.sweep)


def test_a_test_gives_the_looks_that_were_asked_for(sweep: Path) -> None:
    facts = TaskFacts.load(sweep / "tasks" / TASK.id)
    folder = sweep / "banks" / TASK.id / "safe" / "bank-000" / "candidate-01-safe"
    winner = Winner(TASK.id, SAFE, folder, {"alpha": 0.3})
    arguments = (facts.validation, facts.validation_labels, device(), 5)

    test = run_tests(sweep, [winner], *arguments, None, {TASK.id: Wanted("safe", CLASSES)})[TASK.id]

    looks = test.looks
    assert looks is not None
    assert looks.method == "safe"
    labels = np.array(facts.validation_labels)
    assert sorted(labels[list(looks.rows)].tolist()) == list(range(CLASSES))
    rows = list(looks.rows)
    assert looks.said.tolist() == test.methods["safe"].said[rows].tolist()
    assert looks.original_said.tolist() == test.zero_shot.said[rows].tolist()
    assert looks.original_probability == pytest.approx(test.zero_shot.confidence[rows], rel=1e-4)
    card = load_head(folder)[1]
    if card.get("calibration", {}).get("temperature", 1.0) == 1.0:
        assert looks.probability == pytest.approx(test.methods["safe"].confidence[rows], rel=1e-4)

    maps = torch.from_numpy(facts.store().read([facts.validation[r] for r in rows], (0,)))[:, 0]
    heads = {"original": load_pooling(sweep), "tuned": load_head(folder)[0]}
    for name, head in heads.items():
        state = {key: tensor.unsqueeze(0) for key, tensor in head.items()}
        expected = POOL.attention(POOL.prepare(maps), state)[0].mean(1).view(-1, GRID, GRID)
        found = torch.from_numpy(getattr(looks, name))
        assert torch.allclose(found, expected, atol=1e-6), name


def test_a_test_that_nobody_asked_gives_none(sweep: Path) -> None:
    facts = TaskFacts.load(sweep / "tasks" / TASK.id)
    folder = sweep / "banks" / TASK.id / "safe" / "bank-000" / "candidate-01-safe"
    winner = Winner(TASK.id, SAFE, folder, {"alpha": 0.3})
    test = run_tests(sweep, [winner], facts.validation, facts.validation_labels, device(), 5)
    assert test[TASK.id].looks is None
