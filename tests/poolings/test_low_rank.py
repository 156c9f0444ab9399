"""Updates of low rank begin at the original pooling, train as written, and are kept as factors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from safe_ray.heads.bank import Bank, tuned_logits
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import AutogradStep
from safe_ray.poolings.base import HeadState
from safe_ray.poolings.low_rank import (
    DOWN,
    UP,
    LowRank,
    SharedProducts,
    beginning,
    factors_of,
    merged,
    weights_of,
    with_factors,
)
from safe_ray.poolings.modified_resnet import pool_bank
from tests.heads.test_bank import (
    DIM,
    GRID,
    HEADS,
    NAMES,
    POOL,
    WIDTH,
    as_image,
    classifier,
    layer,
    one_batch,
    state_of,
)

ORIGINAL = state_of(layer(0))
WEIGHTS = weights_of(NAMES, ORIGINAL)
RANKS = [2, 5, 3]


class MergingPool:
    """The pooling as a family without shared products has it."""

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        return pool_bank(tokens, state, self.num_heads)


def stack(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def shared(candidates: int) -> dict[str, Tensor]:
    return {name: t.expand(candidates, *t.shape) for name, t in ORIGINAL.items()}


def test_the_matrices_of_projections_are_what_changes() -> None:
    assert set(WEIGHTS) == {f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "c_proj")}


def test_training_begins_at_the_original_pooling() -> None:
    maps, _ = one_batch()
    states = beginning(ORIGINAL, WEIGHTS, RANKS, seed=1)
    stacked = stack(states) | shared(len(states))
    form = LowRank(POOL, WEIGHTS)
    tokens = form.prepare(maps)
    plain = {name: tensor.unsqueeze(0) for name, tensor in ORIGINAL.items()}
    assert torch.allclose(form.pool(tokens, stacked), POOL.pool(tokens, plain), atol=1e-6)
    for state, rank in zip(states, RANKS, strict=True):
        for name in WEIGHTS:
            assert state[name + DOWN].shape == (max(RANKS), ORIGINAL[name].shape[1])
            assert int(state[name + DOWN].abs().sum(1).count_nonzero()) == rank


def test_each_candidate_of_a_bank_is_trained_as_if_alone_at_its_own_rank() -> None:
    """Against open_clip's layer with the product written out, by torch's AdamW."""
    maps, labels = one_batch()
    states = beginning(ORIGINAL, WEIGHTS, RANKS, seed=1)
    form = LowRank(POOL, WEIGHTS)
    bank = Bank(states, form, form.trained, classifier(), 20.0, shared=ORIGINAL)
    step = AutogradStep(bank, BankOptimiser(bank, [0.1] * 3))
    for _ in range(6):
        step(form.prepare(maps), labels, torch.full((3, 16), 1 / 16), [3e-3] * 3)

    for place, rank in enumerate(RANKS):
        factors: dict[str, Tensor] = {}
        for name in WEIGHTS:
            factors[name + UP] = torch.zeros(ORIGINAL[name].shape[0], rank)
            factors[name + DOWN] = states[place][name + DOWN][:rank].clone()
        leaves = [factor.requires_grad_() for factor in factors.values()]
        adamw = torch.optim.AdamW(leaves, lr=3e-3, weight_decay=0.1)
        module = layer(0)
        for _ in range(6):
            adamw.zero_grad()
            own = {
                name: ORIGINAL[name] + factors[name + UP] @ factors[name + DOWN] for name in WEIGHTS
            }
            pooled = torch.func.functional_call(module, own, (as_image(maps, GRID),))
            nn.functional.cross_entropy(tuned_logits(pooled, classifier(), 20.0), labels).backward()
            adamw.step()
        head = bank.head(place)
        for name in WEIGHTS:
            found = head[name + UP] @ head[name + DOWN]
            expected = (factors[name + UP] @ factors[name + DOWN]).detach()
            assert (found - expected).norm() < 0.02 * expected.norm(), name
            # What was padded stays zero.
            assert int(head[name + DOWN].abs().sum(1).count_nonzero()) == rank
            assert int(head[name + UP].abs().sum(0).count_nonzero()) <= rank
        assert set(head) == set(form.trained)


def test_a_head_comes_back_from_its_factors() -> None:
    torch.manual_seed(2)
    difference = {
        name: 0.1 * torch.randn(tensor.shape[0], 3) @ torch.randn(3, tensor.shape[1])
        for name, tensor in ORIGINAL.items()
        if name in WEIGHTS
    }
    head = {name: tensor + difference.get(name, 0.0) for name, tensor in ORIGINAL.items()}
    factors = factors_of(head, ORIGINAL, WEIGHTS, rank=3)
    again = with_factors(ORIGINAL, factors)
    for name, tensor in head.items():
        assert torch.allclose(again[name], tensor, rtol=1e-4, atol=1e-5), name
    kept = sum(tensor.numel() for tensor in factors.values())
    assert kept == 3 * (3 * 2 * WIDTH + WIDTH + DIM)
    assert kept < sum(ORIGINAL[name].numel() for name in WEIGHTS) / 8


def test_the_factors_may_be_stacked() -> None:
    states = beginning(ORIGINAL, WEIGHTS, RANKS, seed=1)
    for state in states:
        for name in WEIGHTS:
            state[name + UP].normal_()
    stacked = stack(states) | shared(len(states))
    for place, state in enumerate(states):
        for name, tensor in with_factors(ORIGINAL, state).items():
            assert torch.allclose(merged(stacked)[name][place], tensor, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    candidates=st.integers(1, 3),
    samples=st.integers(0, 5),
    changed=st.lists(st.sampled_from(WEIGHTS), min_size=1, unique=True),
)
def test_shared_products_are_the_pooling_of_merged_weights_in_float64(
    candidates: int, samples: int, changed: list[str]
) -> None:
    """A worker of several may have no sample in a batch, so there may be none."""
    tokens = torch.randn(samples, GRID * GRID + 1, WIDTH, dtype=torch.float64)
    target = torch.randn(candidates, samples, DIM, dtype=torch.float64)
    base = {name: tensor.double() for name, tensor in shared(candidates).items()}
    factors = {
        name: tensor.double().normal_(std=0.1)
        for name, tensor in stack(
            beginning(ORIGINAL, changed, [4] * candidates, seed=1),
        ).items()
    }
    leaves = [{n: t.clone().requires_grad_() for n, t in factors.items()} for _ in range(2)]
    expected = pool_bank(tokens, merged({**base, **leaves[0]}), HEADS)
    found = LowRank(POOL, tuple(changed)).pool(tokens, {**base, **leaves[1]})
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    (expected * target).sum().backward()
    (found * target).sum().backward()
    for name in factors:
        assert torch.allclose(leaves[1][name].grad, leaves[0][name].grad, rtol=1e-9, atol=1e-11)


def test_a_family_that_shares_no_products_pools_with_merged_weights() -> None:
    maps, _ = one_batch()
    states = beginning(ORIGINAL, WEIGHTS, RANKS, seed=1)
    for state in states:
        for name in WEIGHTS:
            state[name + UP].normal_(std=0.1)
    state = stack(states) | shared(len(states))
    tokens = POOL.prepare(maps)
    assert not isinstance(MergingPool(HEADS), SharedProducts)
    assert torch.allclose(
        LowRank(MergingPool(HEADS), WEIGHTS).pool(tokens, state),
        LowRank(POOL, WEIGHTS).pool(tokens, state),
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_bank_holds_the_original_weights_once() -> None:
    form = LowRank(POOL, WEIGHTS)
    states = beginning(ORIGINAL, WEIGHTS, RANKS, seed=1)
    bank = Bank(states, form, form.trained, classifier(), 20.0, shared=ORIGINAL)
    held = {name for name in bank.state_dict() if "proj" in name or "position" in name}
    assert held == {name.replace(".", "_") for name in form.trained}
    seen: dict[str, Tensor] = {}

    @dataclass(frozen=True)
    class Watched(LowRank):
        def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
            seen.update(state)
            return super().pool(tokens, state)

    bank.pooling = Watched(POOL, WEIGHTS)
    bank.pool(form.prepare(one_batch()[0]))
    for name, tensor in ORIGINAL.items():
        assert seen[name].shape == (len(RANKS), *tensor.shape)
        assert seen[name].data_ptr() == tensor.data_ptr()
        assert seen[name].stride(0) == 0


def test_it_is_no_towers_own() -> None:
    assert not LowRank.matches(nn.Identity())
    with pytest.raises(ValueError, match="another pooling"):
        LowRank.cut(nn.Identity(), 64)
