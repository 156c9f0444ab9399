"""Each candidate has its own schedule; an interrupted optimiser goes on where it stopped."""

from __future__ import annotations

import itertools

import pytest
import torch

from safe_ray.heads.bank import Bank
from safe_ray.heads.optimiser import BankOptimiser, Schedule
from safe_ray.poolings.modified_resnet import with_mean_token
from tests.heads.test_bank import NAMES, POOL, classifier, layer, one_batch, state_of


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    schedule = Schedule(lr=1.0, steps=100, warmup_steps=10)
    rates = [schedule.at(step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[99] < 0.001
    assert rates[100] == 0.0


def test_a_restored_optimiser_continues_to_the_bit() -> None:
    maps, labels = one_batch()
    weights = torch.full((2, 16), 1 / 16)

    def steps(bank: Bank, optimiser: BankOptimiser, count: int) -> None:
        for _ in range(count):
            bank(with_mean_token(maps), labels, weights).sum().backward()
            optimiser.step([1e-3, 1e-4])

    def fresh(states: list[dict[str, torch.Tensor]]) -> Bank:
        return Bank(states, POOL, NAMES, classifier(), 20.0)

    whole = fresh([state_of(layer(seed)) for seed in range(2)])
    steps(whole, BankOptimiser(whole, [0.1, 0.0]), 8)

    first = fresh([state_of(layer(seed)) for seed in range(2)])
    optimiser = BankOptimiser(first, [0.1, 0.0])
    steps(first, optimiser, 3)
    second = fresh([{k: v.clone() for k, v in first.head(i).items()} for i in range(2)])
    steps(second, BankOptimiser(second, [0.1, 0.0], optimiser.moments()), 5)

    for index in range(2):
        for name, tensor in whole.head(index).items():
            assert torch.equal(second.head(index)[name], tensor), name


def test_an_update_is_that_of_torchs_public_optimiser() -> None:
    """torch's fused update is called by its inner name, which may change: this says so first."""
    maps, labels = one_batch()
    bank = Bank([state_of(layer(0))], POOL, NAMES, classifier(), 20.0)
    alone = Bank([state_of(layer(0))], POOL, NAMES, classifier(), 20.0)
    optimiser = BankOptimiser(bank, [0.1])
    public = torch.optim.AdamW(alone.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    weights = torch.full((1, 16), 1 / 16)
    for _ in range(3):
        bank(with_mean_token(maps), labels, weights).sum().backward()
        optimiser.step([1e-3])
        alone(with_mean_token(maps), labels, weights).sum().backward()
        public.step()
        public.zero_grad()
    for name, tensor in bank.head(0).items():
        assert torch.equal(alone.head(0)[name], tensor), name
