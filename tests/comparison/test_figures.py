from __future__ import annotations

from pathlib import Path

import pytest

from safe_ray.comparison.analysis import averages, ranking
from safe_ray.comparison.figures import (
    accuracy_figure,
    critical_difference_figure,
    places_of,
    styles,
)
from safe_ray.comparison.statistics import cliques
from safe_ray.report.figures import render
from safe_ray.specs import ALL_SHOTS
from tests.comparison.results import records
from tests.comparison.test_pairing import paired

GAINS = {"safe": 0.1, "gda": 0.08, "tip_adapter_f": 0.12, "zero_shot": 0.0}


def test_a_line_a_method_shows_its_averages(tmp_path: Path):
    compared = paired(tmp_path, records(GAINS))
    found = [average for average in averages(compared) if average.contestant]
    (axes,) = accuracy_figure(compared, found).axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"SAFE", "GDA", "Tip-Adapter-F", "zero-shot"}
    for contestant in compared.contestants:
        expected = [100 * a.average.mean for a in found if a.contestant == contestant]
        assert list(lines[contestant.title].get_xdata()) == [1, 2]
        assert list(lines[contestant.title].get_ydata()) == pytest.approx(expected)


def test_averages_over_other_data_sets_are_not_joined(tmp_path: Path):
    lines = [v for v in records(GAINS) if (v["dataset"], v["shots"]) != ("cars", 2)]
    compared = paired(tmp_path, lines)
    figure = accuracy_figure(compared, averages(compared)[:8])
    assert all(len(line.get_xdata()) == 1 for line in figure.axes[0].lines)
    assert "average over 4, then 3 data sets" in figure.axes[0].get_title()


def test_many_methods_all_look_different(tmp_path: Path):
    gains = {f"m{at}": 0.001 * at + 0.01 for at in range(20)}
    compared = paired(tmp_path, records(gains, ("birds",), (1,), (1,)))
    looks = {str(sorted(style.items(), key=str)) for style in styles(compared).values()}
    assert len(looks) == 21


def test_bars_join_what_does_not_differ_and_nothing_leaves_the_picture(tmp_path: Path):
    found = ranking(paired(tmp_path, records(GAINS)))
    figure = critical_difference_figure(found)
    render(figure, "png")
    (axes,) = figure.axes
    bars = cliques(found.mean_ranks, found.critical_difference)
    assert bars
    drawn = [line for line in axes.lines if (line.get_gid() or "").startswith("clique")]
    for bar, (first, last) in zip(drawn, bars, strict=True):
        left, right = bar.get_xdata()
        assert left == pytest.approx(found.mean_ranks[first], abs=0.1)
        assert right == pytest.approx(found.mean_ranks[last], abs=0.1)
    said = [text.get_text() for text in axes.texts]
    for contestant, rank in zip(found.contestants, found.mean_ranks, strict=True):
        assert any(contestant.title in text and f"{rank:.2f}" in text for text in said)
    width, height = figure.canvas.get_width_height()
    for text in axes.texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= height, text.get_text()


def test_all_images_stand_beside_the_most_shots():
    assert places_of([1, 16, ALL_SHOTS]) == [1, 16, 32]
    assert places_of([ALL_SHOTS]) == [2]
