from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.errors import InputError
from safe_ray.report import (
    Accuracies,
    BestCandidate,
    TaskResult,
    TestResult,
    ValidationResult,
    read_summary,
    write_summary,
)
from tests.report.results import result

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=20)
accuracies = st.builds(Accuracies, finite, finite, finite)
tests = st.builds(TestResult, finite, finite, finite, st.integers(0, 10**6), accuracies)
counts = st.integers(0, 10**6)
any_result = st.builds(
    TaskResult,
    dataset=text,
    shots=st.integers(1, 64),
    seed=st.integers(0, 2**31),
    episode_digest=text,
    best=st.builds(BestCandidate, finite, finite, st.integers(1, 500), finite),
    validation=st.builds(ValidationResult, finite, finite, finite, counts, counts, st.booleans()),
    test=tests,
    targets=st.dictionaries(text, tests, max_size=2),
    head=text,
    mlflow_run_id=st.none() | text,
)


VALIDATION = result().to_json()["validation"]


@given(any_result)
def test_an_entry_comes_back_as_it_was(value: TaskResult) -> None:
    assert TaskResult.from_json(json.loads(json.dumps(value.to_json()))) == value


def test_an_entry_has_the_documented_keys() -> None:
    entry = result().to_json()
    assert entry == {
        "dataset": "foods",
        "shots": 2,
        "seed": 1,
        "episode_digest": "0123456789abcdef",
        "best": {"lr": 1e-3, "weight_decay": 0.01, "epochs": 40, "alpha": 0.35},
        "validation": {
            "accuracy": 0.625,
            "mean_per_class": 0.625,
            "nll": 1.5,
            "gained": 6,
            "lost": 0,
            "gain_shown": True,
        },
        "test": {
            "zero_shot": 0.5,
            "tuned_only": 0.55,
            "safe": 0.6,
            "samples": 120,
            "mean_per_class": {"zero_shot": 0.5, "tuned_only": 0.55, "safe": 0.6},
        },
        "targets": {},
        "protocol": {
            "selection": "coop",
            "metric": "accuracy",
            "choose_by": "metric",
            "convention": "coop",
            "prompts": "single",
            "support_samples": 20,
            "validation_samples": 40,
            "train_digest": "0123456701234567",
            "validation_digest": "89abcdef89abcdef",
        },
        "head": "heads/foods-2shot-seed1",
        "mlflow_run_id": "f" * 32,
    }


def test_the_order_of_the_tasks_does_not_change_the_file(tmp_path: Path) -> None:
    tasks = [result("foods", 2, 2), result("birds", 16, 1), result("foods", 1, 3)]
    first = write_summary(tasks, tmp_path / "a").read_bytes()
    second = write_summary(tasks[::-1], tmp_path / "b").read_bytes()
    assert first == second
    read = read_summary(tmp_path / "a")
    assert [(r.dataset, r.shots, r.seed) for r in read] == [
        ("birds", 16, 1),
        ("foods", 1, 3),
        ("foods", 2, 2),
    ]
    assert read_summary(tmp_path / "a" / "summary.json") == read


def test_what_is_not_finite_is_null_and_comes_back_as_nan() -> None:
    whole = result()
    odd = dataclasses.replace(whole, validation=dataclasses.replace(whole.validation, nll=math.nan))
    entry = odd.to_json()
    assert entry["validation"]["nll"] is None
    assert math.isnan(TaskResult.from_json(entry).validation.nll)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shots": "2"}, "shots of entry is '2', not a int"),
        ({"best": 3}, "best is 3"),
        ({"colour": "red"}, "unknown"),
        ({"seed": True}, "seed of entry"),
        ({"validation": {**VALIDATION, "gain_shown": 1}}, "gain_shown of validation is 1"),
        ({"validation": {"accuracy": 0.5, "nll": 1.0}}, "written by another version"),
        ({"test": {"zero_shot": 0.5, "tuned_only": 0.5, "safe": 0.5, "samples": 9}}, "mean_per_"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict, words: str) -> None:
    entries = [result().to_json(), {**result(seed=2).to_json(), **change}]
    (tmp_path / "summary.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=f"entry 1: .*{words}"):
        read_summary(tmp_path)


@pytest.mark.parametrize(("content", "words"), [("{", "not JSON"), ("{}", "not a list")])
def test_a_file_that_is_no_summary_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_summary(tmp_path)


def test_a_sweep_without_a_summary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_summary(tmp_path)
