"""The pooling with its derivative written out is the plain one, and so is the fused step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_ray.heads import gradients
from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser
from safe_ray.heads.step import (
    AutogradStep,
    CrossEntropy,
    FusedStep,
    Step,
    Targets,
    compile_module,
    single_threaded,
    single_threaded_workers,
)
from safe_ray.poolings.absorbed import pool_heads
from safe_ray.poolings.base import HeadState, select_parameters
from safe_ray.poolings.modified_resnet import AttentionPool, pool_bank, with_mean_token
from tests.heads.test_bank import (
    DIM,
    GRID,
    HEADS,
    NAMES,
    POOL,
    classifier,
    layer,
    one_batch,
    state_of,
)


@dataclass(frozen=True)
class StackedPool(AttentionPool):
    """The pooling as a GPU computes it."""

    def pool(self, tokens: Tensor, state: HeadState) -> Tensor:
        return pool_bank(tokens, state, self.num_heads)


def fused(bank: Bank, optimiser: BankOptimiser) -> Step:
    step = POOL.step(bank, optimiser)
    assert isinstance(step, FusedStep)
    return step


def stacked(candidates: int) -> dict[str, Tensor]:
    states = [state_of(layer(seed)) for seed in range(candidates)]
    return {name: torch.stack([s[name] for s in states]).double() for name in NAMES}


def leaves(state: dict[str, Tensor], trained: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_(name in trained) for name, tensor in state.items()}


@settings(max_examples=30, deadline=None)
@given(
    candidates=st.integers(1, 3),
    samples=st.integers(0, 5),
    groups=st.lists(st.sampled_from(AttentionPool.groups), min_size=1, unique=True),
)
def test_pooling_and_gradients_are_the_plain_ones_whatever_is_trained(
    candidates: int, samples: int, groups: list[str]
) -> None:
    """A worker of several may have no sample in a batch, so there may be none."""
    state, trained = stacked(candidates), select_parameters(POOL, groups, NAMES)
    tokens = torch.randn(samples, GRID * GRID + 1, 128, dtype=torch.float64)
    target = torch.randn(candidates, samples, DIM, dtype=torch.float64)
    plain, fast = leaves(state, trained), leaves(state, trained)

    expected = pool_bank(tokens, plain, HEADS)
    found = pool_heads(tokens, fast, HEADS)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(pool_heads(tokens, fast, HEADS), found)

    (expected * target).sum().backward()
    (found * target).sum().backward()
    for name in trained:
        if name == "k_proj.bias":
            continue  # it cancels, so that the plain form has no gradient for it at all
        assert torch.allclose(fast[name].grad, plain[name].grad, rtol=1e-9, atol=1e-11), name


def test_a_graph_is_gone_through_once() -> None:
    """The memory of the forward pass is written over, so that a second pass would be wrong."""
    state = leaves(stacked(1), NAMES)
    tokens = torch.randn(2, GRID * GRID + 1, 128, dtype=torch.float64)
    loss = pool_heads(tokens, state, HEADS).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="serves one backward pass"):
        loss.backward()


def test_the_written_out_loss_gradient_is_autograds() -> None:
    state = state_of(layer(0))
    bank = Bank([state], POOL, NAMES, classifier(), 20.0).double()
    pooled = torch.randn(16, DIM, dtype=torch.float64, requires_grad=True)
    labels = one_batch()[1]
    weights = torch.rand(16, dtype=torch.float64)
    weights[3:6] = 0
    expected = bank.losses(pooled.unsqueeze(0), labels, weights.unsqueeze(0))[0]
    expected.backward()
    [targets] = Targets.of(labels, weights.unsqueeze(0))
    loss, gradient = CrossEntropy(bank.classifier, 20.0)(pooled.detach(), targets)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(gradient, pooled.grad, rtol=1e-9, atol=1e-14)


def test_the_loss_has_no_part_of_a_left_out_sample_that_is_nan() -> None:
    pooled = torch.randn(4, DIM)
    pooled[1] = float("nan")
    weights = torch.tensor([[0.5, 0.0, 0.3, 0.2]])
    [targets] = Targets.of(torch.zeros(4, dtype=torch.int64), weights)
    loss, gradient = CrossEntropy(classifier(), 20.0)(pooled, targets)
    assert loss.isfinite()
    assert gradient[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("block_bytes", [gradients.BLOCK_BYTES, 10_000, 1])
@pytest.mark.parametrize("groups", ["all", ["v_proj", "c_proj"], ["positional_embedding"]])
def test_fused_steps_are_the_graphs_steps_whatever_the_block_size(
    monkeypatch: pytest.MonkeyPatch, groups: list[str] | str, block_bytes: int
) -> None:
    monkeypatch.setattr(gradients, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("safe_ray.heads.step.BLOCK_BYTES", block_bytes)
    maps, labels = one_batch()
    weights = torch.rand(3, 16) / 16
    weights[1, ::2] = 0
    banks, losses = [], []
    for kind in (AutogradStep, fused):
        states = [state_of(layer(seed)) for seed in range(3)]
        bank = Bank(states, POOL, select_parameters(POOL, groups, NAMES), classifier(), 20.0)
        step = kind(bank, BankOptimiser(bank, [0.1, 0.0, 0.01]))
        for _ in range(20):
            last = step(with_mean_token(maps), labels, weights, [1e-3, 1e-4, 3e-4])
        banks.append(bank)
        losses.append(last)
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    for index in range(3):
        for name, expected in banks[0].head(index).items():
            assert torch.allclose(banks[1].head(index)[name], expected, rtol=1e-3, atol=1e-5), name


def test_a_compiled_step_is_the_step_whatever_the_size_of_the_batch() -> None:
    """Traced and differentiated ahead of time; what a GPU adds is the code that is generated."""
    maps, labels = one_batch()
    banks, losses = [], []
    for compiled in (False, True):
        states = [state_of(layer(seed)) for seed in range(2)]
        bank = Bank(states, StackedPool(HEADS), NAMES, classifier(), 20.0)
        module = compile_module(bank, backend="aot_eager") if compiled else bank
        step = AutogradStep(module, BankOptimiser(bank, [0.1, 0.0]))
        for size in (16, 16, 5, 16, 3):
            weights = torch.full((2, size), 1 / size)
            last = step(with_mean_token(maps[:size]), labels[:size], weights, [1e-3, 3e-4])
        banks.append(bank)
        losses.append(last)
    assert torch.allclose(*losses, rtol=1e-4)
    for index in range(2):
        for name, expected in banks[0].head(index).items():
            assert torch.allclose(banks[1].head(index)[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    ("kind", "pooling"), [(fused, POOL), (AutogradStep, POOL), (AutogradStep, StackedPool(HEADS))]
)
def test_a_step_in_bfloat16_is_the_exact_one_but_for_rounding(
    kind: Callable[[Bank, BankOptimiser], Step], pooling: AttentionPool
) -> None:
    maps, labels = one_batch()
    weights = torch.full((2, 16), 1 / 16)
    losses = []
    for precision in (None, torch.bfloat16):
        states = [state_of(layer(seed)) for seed in range(2)]
        bank = Bank(states, pooling, NAMES, classifier(), 20.0, precision)
        step = kind(bank, BankOptimiser(bank, [0.0, 0.0]))
        for _ in range(20):
            last = step(with_mean_token(maps), labels, weights, [1e-4, 1e-4])
        losses.append(last)
        assert last.dtype == bank.stacked("v_proj.weight").dtype == torch.float32
    assert torch.allclose(*losses, rtol=0.05)
    assert not torch.equal(*losses)


def test_fused_steps_leave_the_neighbours_of_a_diverged_head_untouched() -> None:
    maps, labels = one_batch()
    heads = []
    for poison in (False, True):
        states = [state_of(layer(seed)) for seed in range(3)]
        if poison:
            states[1]["q_proj.weight"].fill_(float("nan"))
        bank = Bank(states, POOL, NAMES, classifier(), 20.0)
        step = fused(bank, BankOptimiser(bank, [0.01] * 3))
        for _ in range(5):
            step(with_mean_token(maps), labels, torch.full((3, 16), 1 / 16), [1e-3] * 3)
        heads.append([bank.head(index) for index in (0, 2)])
    for sound, neighbour in zip(*heads, strict=True):
        assert all(torch.equal(neighbour[name], sound[name]) for name in NAMES)


def test_the_losses_of_many_candidates_come_in_their_order() -> None:
    """With more candidates than threads, each thread takes the next one that nobody has."""
    maps, labels = one_batch()
    states = [state_of(layer(seed)) for seed in range(7)]
    weights = torch.full((7, 16), 1 / 16)
    bank = Bank(states, POOL, NAMES, classifier(), 20.0)
    expected = bank(with_mean_token(maps), labels, weights)
    found = fused(bank, BankOptimiser(bank, [0.0] * 7))(
        with_mean_token(maps), labels, weights, [1e-3] * 7
    )
    assert torch.allclose(found, expected, rtol=1e-4)


def test_one_thread_is_asked_for_only_within_the_block() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_workers_compute_with_one_thread_and_leave_everyone_elses_count_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with single_threaded_workers(2) as workers:
            assert {f.result() for f in [workers.submit(torch.get_num_threads)] * 4} == {1}
            assert torch.get_num_threads() == 2
            with ThreadPoolExecutor(1) as newer:
                assert newer.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
