from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from safe_ray.comparison.pairing import Paired, pair
from safe_ray.comparison.rows import merge, read_rows
from safe_ray.errors import InputError
from tests.comparison.results import record, records, written


def paired(tmp_path: Path, lines, baseline: str | None = None) -> Paired:
    folder = written(tmp_path, lines)
    return pair(merge([(folder, read_rows(folder))]), baseline)


def test_arrays_hold_every_methods_accuracies_the_baseline_first(tmp_path: Path):
    lines = records({"gda": 0.05, "safe": 0.1})
    found = paired(tmp_path, lines)
    assert [contestant.name for contestant in found.contestants] == ["safe", "gda"]
    assert found.accuracy.shape == (2, 4, 2, 3)
    for line in lines:
        at = (
            ["safe", "gda"].index(line["method"]),
            found.datasets.index(line["dataset"]),
            found.shots.index(line["shots"]),
            found.seeds.index(line["seed"]),
        )
        assert found.accuracy[at] == line["test_accuracy"]
        assert found.macro_accuracy[at] == line["test_macro_accuracy"]
    assert found.notes == ()


def test_without_safe_the_first_method_is_the_baseline(tmp_path: Path):
    assert paired(tmp_path, records({"gda": 0.1, "tip": 0.1})).baseline.name == "gda"
    assert paired(tmp_path, records({"gda": 0.1, "tip": 0.1}), "tip").baseline.name == "tip"
    with pytest.raises(InputError, match=r"no method 'gdb' .*Did you mean 'gda'"):
        paired(tmp_path, records({"gda": 0.1, "tip": 0.1}), "gdb")


def test_only_tasks_of_all_methods_are_used_and_the_others_are_named(tmp_path: Path):
    lines = records({"safe": 0.1, "gda": 0.2})
    lines = [v for v in lines if (v["method"], v["dataset"], v["shots"]) != ("gda", "cars", 2)]
    found = paired(tmp_path, lines)
    absent = np.isnan(found.accuracy)
    assert absent.sum() == 2 * 3
    assert absent[:, found.datasets.index("cars"), found.shots.index(2)].all()
    assert found.notes == (
        "Left out are 3 of 24 tasks, which not every method has: cars at 2 shots, seeds 1, 2, 3 "
        "(not with GDA).",
    )


def test_no_common_task_is_refused(tmp_path: Path):
    lines = [record("safe", 0.5, seed=1), record("gda", 0.5, seed=2)]
    with pytest.raises(InputError, match=r"No task .* has a result of every one of safe, gda"):
        paired(tmp_path, lines)


def test_different_test_splits_are_refused(tmp_path: Path):
    lines = [record("safe", 0.5), record("gda", 0.5, test_samples=100)]
    with pytest.raises(InputError, match="tested on 200 images for safe and on 100 for gda"):
        paired(tmp_path, lines)


def test_other_episodes_and_another_untouched_model_are_said(tmp_path: Path):
    lines = [record("safe", 0.5), record("gda", 0.5, episode_digest="x", test_zero_shot=0.31)]
    episodes, untouched = paired(tmp_path, lines).notes
    assert episodes.startswith("In 1 of 1 tasks the methods saw different support")
    assert untouched.startswith("In 1 of 1 tasks the untouched model's accuracy is not the same")


def test_several_backbones_make_a_method_several_contestants(tmp_path: Path):
    lines = [record("safe", 0.5), record("safe", 0.7, backbone="vit_b_16", test_zero_shot=0.6)]
    found = paired(tmp_path, lines, "safe@vit_b_16")
    assert [contestant.name for contestant in found.contestants] == ["safe@vit_b_16", "safe@rn50"]
    assert found.baseline.title == "SAFE, vit_b_16"
    assert found.zero_shot is None
    assert found.notes == ()


def test_two_methods_of_one_title_are_told_apart(tmp_path: Path):
    lines = [record("safe", 0.5), record("safe_b", 0.5, title="SAFE")]
    assert [c.title for c in paired(tmp_path, lines).contestants] == [
        "SAFE (safe)",
        "SAFE (safe_b)",
    ]
