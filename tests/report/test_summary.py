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
    Protocol,
    TaskResult,
    TestResult,
    ValidationResult,
    read_summary,
    write_summary,
)
from safe_ray.specs import ALL_SHOTS
from tests.report.results import on_test, result

finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=20)
counts = st.integers(0, 10**6)


def measured_by(method: str) -> st.SearchStrategy[TestResult]:
    numbers = st.fixed_dictionaries(dict.fromkeys(("zero_shot", method), finite))
    return st.builds(TestResult, numbers, numbers, numbers, counts)


@st.composite
def any_result(draw: st.DrawFn) -> TaskResult:
    method = draw(st.just("zero_shot") | text)
    return TaskResult(
        dataset=draw(text),
        shots=draw(st.integers(1, 64) | st.just(ALL_SHOTS)),
        seed=draw(st.integers(0, 2**31)),
        method=method,
        title=draw(text),
        backbone=draw(text),
        episode_digest=draw(text),
        best=draw(st.dictionaries(text, finite, max_size=4)),
        validation=draw(
            st.builds(ValidationResult, finite, finite, finite, counts, counts, st.booleans())
        ),
        test=draw(measured_by(method)),
        targets=draw(st.dictionaries(text, measured_by(method), max_size=2)),
        protocol=draw(
            st.builds(Protocol, *[text] * 5, *[st.booleans()] * 2, counts, counts, text, text)
        ),
        head=draw(st.none() | text),
        mlflow_run_id=draw(st.none() | text),
    )


VALIDATION = result().to_json()["validation"]


@given(any_result())
def test_an_entry_comes_back_as_it_was(value: TaskResult) -> None:
    assert TaskResult.from_json(json.loads(json.dumps(value.to_json()))) == value


def test_all_images_are_written_as_all() -> None:
    assert result(shots=ALL_SHOTS).to_json()["shots"] == "all"


def test_an_entry_has_the_documented_keys() -> None:
    entry = result(targets={"sketch": on_test(0.25, 0.5, 50)}).to_json()
    assert entry == {
        "dataset": "foods",
        "shots": 2,
        "seed": 1,
        "method": "safe",
        "title": "SAFE",
        "backbone": "tiny",
        "episode_digest": "0123456789abcdef",
        "best": {"lr": 1e-3, "weight_decay": 0.01, "epochs": 40.0, "alpha": 0.35},
        "validation": {
            "accuracy": 0.625,
            "mean_per_class": 0.625,
            "nll": 1.5,
            "gained": 6,
            "lost": 0,
            "gain_shown": True,
        },
        "test": {"zero_shot": 0.5, "safe": 0.6},
        "test_mean_per_class": {"zero_shot": 0.5, "safe": 0.6},
        "test_ece": {"zero_shot": 0.0625, "safe": 0.0625},
        "test_samples": 120,
        "targets": {
            "sketch": {
                "accuracy": {"zero_shot": 0.25, "safe": 0.5},
                "mean_per_class": {"zero_shot": 0.25, "safe": 0.5},
                "ece": {"zero_shot": 0.0625, "safe": 0.0625},
                "samples": 50,
            }
        },
        "protocol": {
            "selection": "coop",
            "metric": "accuracy",
            "choose_by": "metric",
            "convention": "coop",
            "prompts": "single",
            "refit": False,
            "cautious": False,
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


def test_the_methods_of_a_task_stay_in_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    tasks = [result(seed=seed, method=name) for name in ("safe", "gda") for seed in (2, 1)]
    write_summary(tasks, tmp_path)
    read = [(r.seed, r.method) for r in read_summary(tmp_path)]
    assert read == [(1, "safe"), (1, "gda"), (2, "safe"), (2, "gda")]


def test_zero_shot_has_one_number_of_each_kind_and_may_keep_nothing() -> None:
    plain = dataclasses.replace(
        result(method="zero_shot", accuracy=0.5), best={}, head=None, mlflow_run_id=None
    )
    entry = plain.to_json()
    assert (entry["test"], entry["best"], entry["head"]) == ({"zero_shot": 0.5}, {}, None)
    assert TaskResult.from_json(entry) == plain


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
        ({"best": 3}, "best of entry is 3"),
        ({"colour": "red"}, "unknown"),
        ({"seed": True}, "seed of entry"),
        ({"validation": {**VALIDATION, "gain_shown": 1}}, "gain_shown of validation is 1"),
        ({"validation": {"accuracy": 0.5, "nll": 1.0}}, "written by another version"),
        ({"best": {"lr": "fast"}}, "lr of best of entry is 'fast', not a float"),
        ({"head": 7}, "head of entry is 7"),
        ({"test": 0.5}, "test of entry is 0.5"),
        ({"test_samples": 9.5}, "test_samples of entry is 9.5, not a int"),
        ({"test": {"safe": 0.5}}, r"accuracy of test is of \['safe'\]"),
        ({"test_ece": {"zero_shot": 0.1, "gda": 0.1}}, r"not of \['safe', 'zero_shot'\]"),
        ({"targets": {"sketch": {"accuracy": {}}}}, "target sketch lacks"),
        ({"targets": []}, r"targets of entry is \[\]"),
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
