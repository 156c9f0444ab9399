"""How far apart the class shares of two sets of samples are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.sweep.shares import total_variation

counts = st.lists(st.integers(0, 1000), min_size=4, max_size=4).filter(any)


@given(counts, st.integers(1, 9))
def test_equal_shares_are_not_apart_however_many_samples_there_are(
    sizes: list[int], times: int
) -> None:
    assert total_variation(sizes, [times * size for size in sizes]) == pytest.approx(0, abs=1e-12)


@given(counts, counts)
def test_it_is_the_largest_difference_that_any_set_of_classes_has(
    first: list[int], second: list[int]
) -> None:
    shares = [(a / sum(first), b / sum(second)) for a, b in zip(first, second, strict=True)]
    largest = max(
        abs(sum(a - b for place, (a, b) in enumerate(shares) if chosen >> place & 1))
        for chosen in range(2**4)
    )
    assert total_variation(first, second) == pytest.approx(largest, abs=1e-12)


def test_classes_in_common_are_what_is_not_apart() -> None:
    assert total_variation([1, 1, 0], [0, 5, 5]) == pytest.approx(0.5)
    assert total_variation([3, 0], [0, 7]) == 1.0
