"""The size of a bank: what the memory holds, and room for the estimator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.poolings.modified_resnet import AttentionPool
from safe_ray.search.sizing import BankFootprint, automatic_bank_size, bank_sizes

PARAMETERS = 50 * 2048 + 3 * (2048 * 2048 + 2048) + 1024 * 2048 + 1024
RN50 = BankFootprint(
    parameters=PARAMETERS,
    activation_bytes=AttentionPool(32).activation_bytes(
        {"positional_embedding": torch.empty(50, 2048)}, batch_size=32
    ),
    members=1,
    maps=9 * 1600,
    map_bytes=2 * 49 * 2048,
)
GIB = 2**30


@given(candidates=st.integers(1, 500), memory=st.integers(0, 200 * GIB))
def test_a_bank_fits_the_memory_and_leaves_three_banks_to_the_estimator(
    candidates: int, memory: int
) -> None:
    size = automatic_bank_size(candidates, RN50, memory)
    assert 1 <= size <= -(-candidates // 4)
    assert size == 1 or RN50.maps_bytes + size * RN50.candidate_bytes <= memory


def test_an_rn50_head_needs_what_its_weights_say() -> None:
    assert RN50.candidate_bytes > 16 * PARAMETERS  # weights, gradients and two moments
    assert RN50.candidate_bytes < 64 * PARAMETERS


def test_folds_are_members_of_the_bank_and_need_their_own_memory() -> None:
    with_folds = replace(RN50, members=5)
    assert with_folds.candidate_bytes == 5 * RN50.candidate_bytes
    memory = RN50.maps_bytes + 20 * RN50.candidate_bytes
    assert automatic_bank_size(100, RN50, memory) == 20
    assert automatic_bank_size(100, with_folds, memory) == 4


@pytest.mark.parametrize(
    ("asked", "bank", "sizes"),
    [
        ((7,), 2, (2, 2, 2, 1)),
        ((8,), 4, (4, 4)),
        ((3,), 8, (3,)),
        ((6, 16), 4, (4, 2, 4, 4, 2)),
        ((4, 8, 12), 4, (4, 4, 4)),
        ((3, 20), 8, (3, 8, 8, 1)),
    ],
)
def test_what_was_asked_for_later_goes_into_banks_of_its_own(
    asked: tuple[int, ...], bank: int, sizes: tuple[int, ...]
) -> None:
    assert bank_sizes(asked, bank) == sizes
