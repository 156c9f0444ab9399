"""The grid of a cache, held to the logits of each point, however it is spaced."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_ray.methods.cache import ClassGroups, class_votes, tally

EVEN = [0.1 + 0.25 * step for step in range(40)]
UNEVEN = [0.0, 0.5, 1.0, 1.5, 5.5, 7.0, 7.5]
BACKWARDS = [3.0, 2.0, 1.0, 0.5]
# exp(1000) is no float: logits have to do.
STEEP = [0.0, 1.0, 400.0]


def by_points(
    affinity: Tensor,
    zero_shot: Tensor,
    labels: Tensor,
    keys: Tensor,
    betas: list[float],
    gammas: list[float],
) -> tuple[Tensor, Tensor]:
    right, nll = [], []
    for beta in betas:
        votes = class_votes(affinity, keys, zero_shot.shape[1], beta)
        for gamma in gammas:
            logits = zero_shot + gamma * votes
            right.append(logits.argmax(-1) == labels)
            nll.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return torch.stack(right, 1), torch.stack(nll)


def problem(
    seed: int, classes: int, keys: int, samples: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize(values, dim=-1)

    # Some classes have several keys, and others none.
    of_keys = torch.randint(classes, (keys,), generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    features = unit(samples, 8)
    return features @ unit(keys, 8).t(), 20 * features @ unit(classes, 8).t(), labels, of_keys


@given(
    st.integers(0, 1000),
    st.integers(2, 6),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([EVEN, UNEVEN, BACKWARDS]),
    st.sampled_from([EVEN[:12], UNEVEN, BACKWARDS, STEEP]),
)
@settings(deadline=None, max_examples=60)
def test_the_grid_says_what_each_point_says(
    seed: int, classes: int, keys: int, samples: int, betas: list[float], gammas: list[float]
) -> None:
    affinity, zero_shot, labels, of_keys = problem(seed, classes, keys, samples)
    groups = ClassGroups(of_keys, classes)
    right, nll = tally(affinity, zero_shot, labels, groups, betas, gammas)
    expected = by_points(affinity, zero_shot, labels, of_keys, betas, gammas)
    assert torch.equal(right, expected[0])
    torch.testing.assert_close(nll, expected[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gammas", [EVEN[:12], STEEP])
def test_of_equal_logits_the_first_class_is_taken(gammas: list[float]) -> None:
    """Two classes have the same text and as many votes."""
    affinity = torch.full((2, 2), 0.5, dtype=torch.float64)
    zero_shot = torch.tensor([[3.0, 3.0, 1.0]] * 2, dtype=torch.float64)
    groups = ClassGroups(torch.tensor([0, 1]), 3)
    right, nll = tally(affinity, zero_shot, torch.tensor([0, 1]), groups, UNEVEN, gammas)
    assert right[0].all()
    assert not right[1].any()
    assert bool((nll > 2 * math.log(2) - 1e-12).all())


def test_logits_far_apart_keep_their_likelihood_in_float32() -> None:
    """A class 300 below the best one has a power of zero, and still its cross entropy."""
    zero_shot = torch.tensor([[0.0, -300.0]])
    groups = ClassGroups(torch.tensor([1]), 2)
    _, nll = tally(torch.tensor([[1.0]]), zero_shot, torch.tensor([1]), groups, [1.0], [0.0, 10.0])
    assert nll.tolist() == pytest.approx([300.0, 290.0])
