"""What the tracker and the summary are told of a test."""

from __future__ import annotations

import numpy as np
import pytest

from safe_ray.sweep.recording import result_of
from safe_ray.sweep.testing import TaskTest, TestOutcome


def outcome(right: list[bool], confidence: list[float]) -> TestOutcome:
    labels = np.array([0, 0, 0, 0, 1])
    said = np.where(right, labels, labels + 1)
    return TestOutcome(said, np.array(confidence, np.float32), labels, classes=3)


def test_the_accuracies_of_a_method_stand_beside_those_of_zero_shot() -> None:
    test = TaskTest(
        outcome([True, True, True, True, False], [0.9] * 5),
        {"safe": outcome([True, True, False, False, True], [0.3, 0.7, 0.7, 0.3, 0.7])},
    )
    result = result_of(test, "safe")
    assert result.accuracy == {"zero_shot": 0.8, "safe": 0.6}
    # A class without test samples has no say.
    assert result.mean_per_class == {"zero_shot": 0.5, "safe": 0.75}
    assert result.samples == 5
    # Two samples at 0.3 of which one is right, three at 0.7 of which two are.
    expected = (abs(1 - 0.6) + abs(2 - 2.1)) / 5
    assert result.ece == {"zero_shot": pytest.approx(0.1), "safe": pytest.approx(expected)}


def test_zero_shot_as_a_method_of_its_own_is_one_number() -> None:
    same = outcome([True, True, True, True, False], [0.9] * 5)
    assert result_of(TaskTest(same, {"zero_shot": same}), "zero_shot").accuracy == {
        "zero_shot": 0.8
    }
