"""Knobs are solved on the samples that they are given, exactly for one group, in turn for more."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.heads.selection import Rule
from safe_ray.methods.knobs import Grid, KnobSums, points_of, solve, sums_of_logits


def a_table(seed: int, samples: int = 12, classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(samples, classes, generator=generator)
    more = torch.randn(2, samples, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)

    def evaluate(grid: Grid, at) -> KnobSums:
        def logits(point):
            return base + point["a"] * more[0] + point["b"] * more[1]

        return sums_of_logits(logits, base, labels, grid, at)

    return evaluate, base, more, labels


def test_the_last_knob_varies_fastest() -> None:
    assert points_of({"a": [0, 1], "b": [5, 6]}) == [
        {"a": 0, "b": 5},
        {"a": 0, "b": 6},
        {"a": 1, "b": 5},
        {"a": 1, "b": 6},
    ]
    assert points_of({}) == [{}]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), choose_by=st.sampled_from(["metric", "nll"]))
def test_one_group_is_solved_as_by_trying_everything(seed: int, choose_by: str) -> None:
    evaluate, base, more, labels = a_table(seed)
    knobs = {"a": [0.0, 0.5, 1.0], "b": [-1.0, 0.0, 2.0]}
    solution = solve(evaluate, [("a", "b")], knobs, Rule("accuracy", choose_by))

    def judged(point):
        logits = (base + point[0] * more[0] + point[1] * more[1]).double()
        accuracy = float((logits.argmax(-1) == labels).double().mean())
        nll = float(torch.nn.functional.cross_entropy(logits, labels))
        return (accuracy, -nll) if choose_by == "metric" else (-nll,)

    best = max(itertools.product(*knobs.values()), key=judged)
    found = (solution.at["a"], solution.at["b"])
    assert judged(found) == pytest.approx(judged(best), abs=1e-6)
    assert solution.point.accuracy == pytest.approx(
        float(
            ((base + found[0] * more[0] + found[1] * more[1]).argmax(-1) == labels).double().mean()
        )
    )


def test_groups_are_solved_in_turn_and_a_fixed_knob_stays() -> None:
    evaluate, *_ = a_table(3)
    knobs = {"a": [0.0, 0.5, 1.0], "b": [0.25]}
    solution = solve(evaluate, [("a",), ("b",)], knobs, Rule("accuracy", "nll"))
    assert solution.at["b"] == 0.25
    together = solve(evaluate, [("a", "b")], {**knobs, "b": [0.25]}, Rule("accuracy", "nll"))
    assert solution.at == together.at


def test_a_second_pass_never_makes_it_worse() -> None:
    evaluate, *_ = a_table(4)
    rule = Rule("accuracy", "nll")
    knobs = {"a": [0.0, 0.5, 1.0], "b": [-1.0, 0.0, 2.0]}
    solution = solve(evaluate, [("a",), ("b",)], knobs, rule)
    exact = solve(evaluate, [("a", "b")], knobs, rule)
    only_a = solve(evaluate, [("a",)], {**knobs, "b": [0.0]}, rule)
    assert only_a.point.score <= solution.point.score <= exact.point.score


def test_gained_and_lost_are_against_the_original_model() -> None:
    evaluate, base, more, labels = a_table(5)
    solution = solve(evaluate, [("a", "b")], {"a": [1.0], "b": [1.0]}, Rule())
    before = base.argmax(-1) == labels
    now = (base + more[0] + more[1]).argmax(-1) == labels
    assert solution.point.gained == int((now & ~before).sum())
    assert solution.point.lost == int((before & ~now).sum())
