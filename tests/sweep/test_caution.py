"""A winner whose gain is not shown gives way to zero-shot, and keeps no more than that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from safe_ray.compose import load_config
from safe_ray.heads.artifact import load_head
from safe_ray.methods.base import make_method
from safe_ray.search.choosing import Choice
from safe_ray.specs import MethodSpec
from safe_ray.sweep.caution import as_zero_shot, fall_back
from safe_ray.sweep.refitting import is_refitted
from safe_ray.sweep.testing import run_tests
from safe_ray.sweep.winners import Decision
from safe_ray.training.facts import TaskFacts
from tests.sweep.test_refitting import winner
from tests.training.tasks import SAFE, device, write_task

NEVER_ZERO_SHOT = MethodSpec("safe_a", "SAFE-A", "safe_ray.methods.adapted", {"features": "safe"})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("caution")


@pytest.fixture(scope="module")
def sweep(root: Path) -> Path:
    return root / "sweep"


@pytest.fixture(scope="module")
def choice(root: Path) -> Choice:
    return winner(write_task(root))


def of(method: MethodSpec, choice: Choice) -> Choice:
    return replace(choice, winner=replace(choice.winner, method=method))


def with_counts(choice: Choice, gained: int, lost: int) -> Choice:
    fit = replace(choice.fit, point=replace(choice.fit.point, gained=gained, lost=lost))
    return replace(choice, fit=fit)


def test_only_what_is_not_shown_gives_way_and_it_is_said(choice: Choice, sweep: Path) -> None:
    said: list[str] = []
    shown, doubtful = with_counts(choice, 9, 0), with_counts(choice, 3, 2)
    kept = fall_back(Decision({choice.id: shown}, {}), sweep, said.append)
    assert (kept.choices[choice.id], said) == (shown, [])
    fallen = fall_back(Decision({choice.id: doubtful}, {}), sweep, said.append)
    assert fallen.choices[choice.id].winner.at == {"alpha": 0.0}
    assert "1 of 1 winners" in said[0]
    assert choice.id.task_id in said[0]


def test_a_head_with_alpha_is_written_again_with_alpha_0(choice: Choice, sweep: Path) -> None:
    fallen = as_zero_shot(choice, sweep)
    assert fallen.values == {**choice.values, "alpha": 0.0}
    assert fallen.validation == choice.validation
    assert choice.winner.folder is not None
    assert fallen.winner.folder is not None
    state, card = load_head(fallen.winner.folder)
    assert (card["alpha"], card["knobs"], card["cautious"]) == (0.0, {"alpha": 0.0}, True)
    assert "calibration" not in card
    before, old = load_head(choice.winner.folder)
    assert old["alpha"] == choice.fit.at["alpha"]
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_a_method_that_is_never_zero_shot_keeps_nothing(choice: Choice, sweep: Path) -> None:
    fallen = as_zero_shot(of(NEVER_ZERO_SHOT, choice), sweep)
    assert (fallen.winner.folder, fallen.values) == (None, {})
    assert fallen.id.method == "safe_a"


@pytest.mark.parametrize("method", [SAFE, NEVER_ZERO_SHOT])
def test_what_gave_way_is_tested_as_zero_shot_and_not_trained_again(
    choice: Choice, sweep: Path, method: MethodSpec
) -> None:
    fallen = as_zero_shot(of(method, choice), sweep)
    facts = TaskFacts.load(sweep / "tasks" / choice.id.task_id)
    assert not is_refitted(fallen, facts)
    labels = facts.validation_labels
    tests = run_tests(sweep, [fallen.winner], facts.validation, labels, device(), 8)
    test = tests[choice.id.task_id]
    assert test.methods[method.name].right.tolist() == test.zero_shot.right.tolist()
    confidence = test.methods[method.name].confidence
    assert confidence == pytest.approx(test.zero_shot.confidence, abs=1e-6)


def test_methods_say_at_which_of_their_knobs_they_are_zero_shot(tmp_path: Path) -> None:
    names = ["safe", "logit_blend", "weight_blend", "safe_lowrank", "clip_adapter", "task_residual"]
    config = load_config([f"method=[{','.join(names)}]", f"storage={tmp_path}"])
    for name, file in config.methods.items():
        at = getattr(make_method(file.module, file.options), "zero_shot_at", {})
        assert set(at) == set(file.knobs), name
        assert set(at.values()) == {0.0}, name
