"""Each candidate has its own schedule; an interrupted optimiser goes on where it stopped."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from safe_ray.heads.bank import Bank, tuned_logits
from safe_ray.heads.optimiser import BankOptimiser, PullToStart, Schedule
from safe_ray.heads.step import AutogradStep
from safe_ray.poolings.modified_resnet import with_mean_token
from tests.heads.test_bank import (
    GRID,
    NAMES,
    POOL,
    as_image,
    classifier,
    layer,
    one_batch,
    state_of,
)


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


@pytest.mark.parametrize("kind", ["fused", "autograd"])
def test_decay_to_start_pulls_each_candidate_by_its_own_amount(kind: str) -> None:
    """Against torch's AdamW on open_clip's layer, with the pull written out before each update."""
    rates, pulls = [1e-3, 1e-3, 3e-3], [0.0, 20.0, 5.0]
    start = state_of(layer(0))
    maps, labels = one_batch()
    bank = Bank([start] * 3, POOL, NAMES, classifier(), 20.0)
    optimiser = BankOptimiser(bank, [0.1] * 3, pull=PullToStart(start, pulls))
    step = POOL.step(bank, optimiser) if kind == "fused" else AutogradStep(bank, optimiser)
    assert step is not None
    for _ in range(10):
        step(with_mean_token(maps), labels, torch.full((3, 16), 1 / 16), rates)

    for index, (lr, pull) in enumerate(zip(rates, pulls, strict=True)):
        alone = layer(0)
        adamw = torch.optim.AdamW(alone.parameters(), lr=lr, weight_decay=0.1)
        for _ in range(10):
            adamw.zero_grad()
            logits = tuned_logits(alone(as_image(maps, GRID)), classifier(), 20.0)
            nn.functional.cross_entropy(logits, labels).backward()
            with torch.no_grad():
                for name, parameter in alone.named_parameters():
                    parameter -= lr * pull * (parameter - start[name])
            adamw.step()
        for name, expected in state_of(alone).items():
            if name != "k_proj.bias":  # without a gradient but for rounding, and without effect
                moved = (expected - start[name]).norm()
                assert (bank.head(index)[name] - expected).norm() < 0.01 * moved, name


@pytest.mark.parametrize("kind", ["fused", "autograd"])
def test_a_distance_penalty_is_part_of_the_loss(kind: str) -> None:
    """Against torch's AdamW on open_clip's layer, with the squared distance added to the loss."""
    penalties = [0.0, 0.3, 3.0]
    start = state_of(layer(0))
    maps, labels = one_batch()
    bank = Bank([start] * 3, POOL, NAMES, classifier(), 20.0)
    held = PullToStart(start, [0.0] * 3, penalties)
    optimiser = BankOptimiser(bank, [0.1] * 3, pull=held)
    step = POOL.step(bank, optimiser) if kind == "fused" else AutogradStep(bank, optimiser)
    assert step is not None
    for _ in range(10):
        step(with_mean_token(maps), labels, torch.full((3, 16), 1 / 16), [1e-3] * 3)

    distances = []
    for index, penalty in enumerate(penalties):
        alone = layer(0)
        adamw = torch.optim.AdamW(alone.parameters(), lr=1e-3, weight_decay=0.1)
        for _ in range(10):
            adamw.zero_grad()
            logits = tuned_logits(alone(as_image(maps, GRID)), classifier(), 20.0)
            loss = nn.functional.cross_entropy(logits, labels)
            distance = sum(
                (parameter - start[name]).square().sum()
                for name, parameter in alone.named_parameters()
            )
            (loss + penalty * distance).backward()
            adamw.step()
        distances.append(float(distance.detach()))
        for name, expected in state_of(alone).items():
            if name != "k_proj.bias":  # without a gradient but for rounding, and without effect
                moved = (expected - start[name]).norm()
                assert (bank.head(index)[name] - expected).norm() < 0.02 * moved, name
    assert distances[0] > distances[1] > distances[2]


def test_a_pull_of_nothing_changes_no_bit() -> None:
    start = state_of(layer(0))
    maps, labels = one_batch()
    heads = []
    for pull in (None, PullToStart(start, [0.0, 7.0])):
        bank = Bank([start] * 2, POOL, NAMES, classifier(), 20.0)
        step = POOL.step(bank, BankOptimiser(bank, [0.1] * 2, pull=pull))
        assert step is not None
        for _ in range(5):
            step(with_mean_token(maps), labels, torch.full((2, 16), 1 / 16), [1e-3] * 2)
        heads.append([bank.head(index) for index in range(2)])
    assert all(torch.equal(heads[0][0][name], heads[1][0][name]) for name in NAMES)
    assert not torch.equal(heads[0][1]["v_proj.weight"], heads[1][1]["v_proj.weight"])


@pytest.mark.parametrize("kind", ["fused", "autograd"])
def test_a_temperature_is_another_logit_scale_in_training(kind: str) -> None:
    maps, labels = one_batch()
    weights = torch.full((3, 16), 1 / 16)
    temperatures = [1.0, 0.5, 0.5]

    def trained(scale: float, temperatures: list[float] | None) -> tuple[Bank, torch.Tensor]:
        states = [state_of(layer(seed)) for seed in range(3)]
        bank = Bank(states, POOL, NAMES, classifier(), scale, None, temperatures)
        optimiser = BankOptimiser(bank, [0.1] * 3)
        step = POOL.step(bank, optimiser) if kind == "fused" else AutogradStep(bank, optimiser)
        assert step is not None
        for _ in range(5):
            losses = step(with_mean_token(maps), labels, weights, [1e-3] * 3)
        return bank, losses

    mixed, losses = trained(20.0, temperatures)
    plain = {1.0: trained(20.0, None), 0.5: trained(10.0, None)}
    for index, temperature in enumerate(temperatures):
        bank, expected = plain[temperature]
        assert losses[index] == pytest.approx(float(expected[index]), rel=1e-5)
        for name, tensor in bank.head(index).items():
            assert torch.allclose(mixed.head(index)[name], tensor, rtol=1e-5, atol=1e-7), name
