"""Axes: round ticks, points where they belong, lines that are broken where there is no value."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_ray.report.html.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    axis_of,
    line,
    place,
    thinned,
)

finite = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(st.lists(finite, min_size=1, max_size=8))
def test_whatever_is_drawn_lies_in_the_plot_and_the_axis_has_ticks(values: list[float]) -> None:
    axis = axis_of("x", values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    for value in (*values, *ticks):
        across, up = place(axis, axis, value, value)
        assert LEFT - 1e-6 <= across <= WIDTH - RIGHT + 1e-6
        assert TOP - 1e-6 <= up <= HEIGHT - BOTTOM + 1e-6


@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=8))
def test_so_it_does_on_a_logarithmic_axis(values: list[float]) -> None:
    axis = axis_of("lr", values, logarithmic=True)
    assert axis.ticks()
    for value in (*values, *axis.ticks()):
        assert -1e-9 <= axis.share(value) <= 1 + 1e-9


def test_equal_ratios_are_equal_steps_on_a_logarithmic_axis() -> None:
    axis = Axis("lr", 1e-4, 1e-2, logarithmic=True)
    assert [axis.share(v) for v in (1e-4, 1e-3, 1e-2)] == pytest.approx([0, 0.5, 1])
    assert axis.ticks() == pytest.approx([1e-4, 1e-3, 1e-2])


def test_a_line_is_broken_where_there_is_no_value() -> None:
    axis = Axis("x", 0.0, 3.0)
    points = [(0.0, 0.0), (1.0, 1.0), (2.0, math.nan), (3.0, 3.0)]
    drawn = line(axis, axis, points, "other")
    assert drawn.count("M") == 2
    assert drawn.count("L") == 1


@given(st.integers(1, 500), st.integers(2, 60))
def test_thinning_keeps_both_ends(count: int, most: int) -> None:
    kept = thinned(count, most)
    assert len(kept) <= min(count, most)
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert kept == sorted(set(kept))
