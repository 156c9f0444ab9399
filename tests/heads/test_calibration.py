"""One number that makes probabilities mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.heads.calibration import calibration_error, fit_temperature


def sampled(scale: float, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose labels are drawn with the probabilities of `logits / scale`."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(count, 5, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)[:, 0]
    return scale * logits, labels


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_scale_of_logits_is_found_from_many_samples(scale: float) -> None:
    assert fit_temperature(*sampled(scale, 4000)) == pytest.approx(scale, rel=0.08)


@given(st.floats(0.2, 5.0), st.integers(3, 200), st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_no_temperature_of_a_grid_is_better(scale: float, count: int, seed: int) -> None:
    logits, labels = sampled(scale, count, seed)

    def cost(temperature: float) -> float:
        nll = torch.nn.functional.cross_entropy(
            logits.double() / temperature, labels, reduction="sum"
        )
        return float(nll) + math.log(temperature) ** 2 / (2 * 0.5**2)

    found = fit_temperature(logits, labels)
    assert cost(found) <= min(cost(math.exp(place / 50)) for place in range(-150, 151)) + 1e-6


def test_few_samples_move_it_little() -> None:
    """Two samples that are right would have it at zero, were there no prior."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    assert 0.5 < fit_temperature(logits, torch.tensor([0, 1])) < 1.0


def test_of_many_samples_some_are_enough() -> None:
    logits, labels = sampled(2.0, 50_000)
    assert fit_temperature(logits, labels) == pytest.approx(2.0, rel=0.08)


def test_an_error_is_the_gap_between_sureness_and_truth() -> None:
    """Ten samples at 80% of which seven are right, ten at 30% of which three are."""
    confidence = np.array([0.8] * 10 + [0.3] * 10)
    right = np.array([True] * 7 + [False] * 3 + [True] * 3 + [False] * 7)
    assert calibration_error(confidence, right) == pytest.approx((0.1 * 10 + 0.0) / 20)


def test_a_calibrated_model_has_a_small_error_and_a_sure_one_a_large_one() -> None:
    logits, labels = sampled(4.0, 20_000)
    errors = []
    for temperature in (1.0, fit_temperature(logits, labels)):
        confidence, said = torch.softmax(logits / temperature, -1).max(-1)
        errors.append(calibration_error(confidence.numpy(), (said == labels).numpy()))
    assert errors[0] > 0.1
    assert errors[1] < 0.02
