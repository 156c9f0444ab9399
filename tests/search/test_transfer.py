"""What a task borrows: who lends, what is offered, and that a bad lender costs half of one bank."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from safe_ray.search.space import Range, SearchSpace
from safe_ray.search.transfer import Loan, best_quarter, borrow, lenders, tasks_at_once
from safe_ray.specs import AlphaRow, HyperParameters, Task
from safe_ray.training.job import BankOutcome
from tests.search.outcomes import SPACE, outcome_of

PETS = Task("pets", 2, 1)
TASKS = [
    Task(dataset, shots, seed)
    for seed in (1, 2)
    for shots in (1, 2, 8)
    for dataset in ("pets", "cars", "dtd")
]


def bank(*rates: float, task: Task = PETS, number: int = 0) -> BankOutcome:
    """Candidates with these learning rates; the nearer to 1e-3, the better."""
    return outcome_of([HyperParameters(lr, 0.01, 20, 0.5) for lr in rates], number, task.id)


def lend(
    banks: Mapping[Task, Sequence[BankOutcome]], task: Task, size: int, space: SearchSpace = SPACE
) -> list[Loan]:
    return borrow(space, task, {other: best_quarter(b) for other, b in banks.items()}, size)


def rates(*banks: BankOutcome, size: int = 8) -> list[float]:
    loans = lend({PETS: banks}, Task("pets", 1, 1), size)
    return [loan.candidate.lr for loan in loans]


def test_a_task_borrows_from_the_tasks_that_have_ended_when_it_begins() -> None:
    assert [len(lenders(TASKS, place, window=3)) for place in range(6)] == [0, 0, 0, 1, 2, 3]
    assert set(lenders(TASKS, 5, window=1)) == set(TASKS[:5])


def test_the_same_data_set_lends_first_and_the_nearest_shots_before_others() -> None:
    place = TASKS.index(Task("pets", 2, 2))
    assert lenders(TASKS, place, window=1)[:4] == [
        Task("pets", 2, 1),
        Task("pets", 1, 1),
        Task("pets", 1, 2),
        Task("pets", 8, 1),
    ]
    assert [t.shots for t in lenders(TASKS, place, window=1)[4:]] == [2] * 2 + [1] * 4 + [8] * 2


@given(place=st.integers(0, len(TASKS) - 1), window=st.integers(1, 30))
def test_nobody_borrows_from_a_task_that_may_still_be_in_training(place: int, window: int) -> None:
    assert set(lenders(TASKS, place, window)) == set(TASKS[: max(0, place - window + 1)])


def test_the_window_fills_the_cluster() -> None:
    assert tasks_at_once(concurrent=1, banks_in_flight=1) == 1
    assert tasks_at_once(concurrent=4, banks_in_flight=1) == 7
    assert tasks_at_once(concurrent=5, banks_in_flight=2) == 5


def test_the_best_quarter_is_offered_with_the_best_alpha_of_each_row() -> None:
    outcomes = bank(1e-5, 3e-5, 3e-3, 1e-4), bank(1e-3, 1e-2, 2e-5, 5e-5, number=1)
    loans = lend({PETS: outcomes}, Task("pets", 1, 1), 16)
    assert [(loan.candidate.lr, loan.candidate.alpha) for loan in loans] == [(1e-3, 1), (3e-3, 0.6)]
    assert {loan.source for loan in loans} == {PETS.id}


def test_at_most_half_of_the_bank_is_borrowed() -> None:
    lender = [bank(*(10**-e for e in (5, 4.5, 4, 3.5, 3, 2.5, 2)), number=b) for b in range(4)]
    for size in range(1, 9):
        assert len(rates(*lender, size=size)) == min(size // 2, 3)


def test_candidates_that_are_nearly_the_same_count_as_one() -> None:
    near = outcome_of(
        [
            HyperParameters(1e-3 * factor, 0.01, 20, alpha)
            for factor in (1, 1.05)
            for alpha in (0, 1)
        ]
        + [HyperParameters(3e-3, 0.01, 20, 0.5)]
        + [HyperParameters(1e-5, 0.01, 20, 0.5)] * 7
    )
    loans = lend({PETS: [near]}, Task("pets", 1, 1), 12)
    assert [loan.candidate.lr for loan in loans] == [1e-3]
    twice = {PETS: [near], Task("pets", 4, 1): [bank(3e-3)]}
    loans = lend(twice, Task("pets", 1, 1), 12)
    assert [loan.candidate.lr for loan in loans] == [1e-3, 3e-3]


def test_each_lenders_best_comes_before_anybodys_second_best() -> None:
    poor = (1e-5,) * 6
    outcomes = {
        Task("cars", 1, 1): [bank(1e-2)],
        Task("pets", 2, 1): [bank(1e-3, 3e-3, *poor)],
        Task("pets", 4, 1): [bank(1e-4, 2e-5, *poor)],
    }
    loans = lend(outcomes, Task("pets", 1, 1), 32)
    assert [loan.candidate.lr for loan in loans] == [1e-3, 1e-4, 3e-3, 2e-5, 1e-2]


def test_failed_heads_and_heads_that_are_best_left_out_are_not_offered() -> None:
    outcome = outcome_of([HyperParameters(lr, 0.01, 20, 0.5) for lr in (1e-3, 1e-4)], failed=[0])
    half, none = (0.5,) * 21, (0,) * 21
    flat = AlphaRow(SPACE.alphas, half, half, half, none, none, half)
    useless = replace(outcome.candidates[1], row=flat, best=0)
    assert rates(outcome) == [1e-4]
    assert rates(replace(outcome, candidates=(outcome.candidates[0], useless))) == []


def test_what_is_borrowed_is_moved_into_the_space() -> None:
    narrow = replace(SPACE, lr=Range(1e-5, 1e-4, log=True), epochs=7, alpha=Range(0.0, 0.5))
    (loan,) = lend({PETS: [bank(1e-3)]}, Task("pets", 1, 1), 2, narrow)
    assert (loan.candidate.lr, loan.candidate.epochs, loan.candidate.alpha) == (1e-4, 7, 0.5)


def anything(chance: random.Random) -> HyperParameters:
    return HyperParameters(10 ** chance.uniform(-5, -2), 0.01, chance.randint(5, 50), 0.5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(2, 12))
def test_what_is_borrowed_lies_in_the_space_and_far_apart(seed: int, size: int) -> None:
    chance = random.Random(seed)
    place = chance.randrange(1, len(TASKS))
    outcomes = {
        task: [outcome_of([anything(chance) for _ in range(8)], task_id=task.id)]
        for task in lenders(TASKS, place, window=1)
    }
    loans = lend(outcomes, TASKS[place], size)
    assert 1 <= len(loans) <= size // 2
    for loan in loans:
        assert 1e-5 <= loan.candidate.lr <= 1e-2
        assert 5 <= loan.candidate.epochs <= 50
        assert loan.candidate.alpha in SPACE.alphas
    positions = [SPACE.position(loan.candidate) for loan in loans]
    for i, one in enumerate(positions):
        for other in positions[:i]:
            assert max(abs(one[n] - other[n]) for n in ("lr", "weight_decay", "epochs")) > 0.1
