from __future__ import annotations

import io
import math
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from safe_ray.report.field import Benchmark, field_tables
from safe_ray.report.figures import accuracy_figure, panels, render, styles_of
from tests.report.test_field import BENCHMARK, RESULTS

METHODS = ("zero-shot", "Tuned pooling", "SAFE")


def drawn(axes: Axes, method: str) -> list[tuple[float, float]]:
    """The points of a method's lines, in the order in which they were drawn."""
    found = []
    for container in axes.containers:
        if container.get_label() == method:
            line = container.lines[0]
            found += list(zip(line.get_xdata(), line.get_ydata(), strict=True))
    return found


def bars(axes: Axes, method: str) -> list[tuple[float, float]]:
    """Lower and upper end of a method's error bars."""
    return [
        (segment[0][1], segment[1][1])
        for container in axes.containers
        if container.get_label() == method
        for segment in container.lines[2][0].get_segments()
    ]


def test_there_is_a_panel_a_data_set_in_the_tables_order_and_one_for_the_average():
    figure = accuracy_figure(BENCHMARK)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["foods", "cars", "birds", "average of 3, then 2"]


def test_one_data_set_has_one_panel():
    alone = Benchmark("one", "tiny", tuple(r for r in RESULTS if r.dataset == "cars"))
    assert [axes.get_title() for axes in accuracy_figure(alone).axes] == ["cars"]


@pytest.mark.parametrize("method", ["Tuned pooling", "SAFE"])
def test_what_is_drawn_is_what_the_table_has(method: str):
    figure = accuracy_figure(BENCHMARK)
    table = next(t for t in field_tables(BENCHMARK) if t.title == method)
    for index, axes in enumerate(figure.axes):
        average = index == len(table.datasets)
        cells = [(r.shots, r.average if average else r.cells[index]) for r in table.rows]
        there = [(shots, cell) for shots, cell in cells if cell is not None]
        assert drawn(axes, method) == [(shots, 100 * cell.mean) for shots, cell in there]
        ends = [(100 * cell.low, 100 * cell.high) for _, cell in there]
        assert np.asarray(bars(axes, method)) == pytest.approx(np.asarray(ends))


def test_zero_shot_is_a_horizontal_line_across_the_panel():
    axes = accuracy_figure(BENCHMARK).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "zero-shot"]
    assert list(line.get_ydata()) == pytest.approx([40.0, 40.0])
    left, right = axes.transAxes.inverted().transform(
        line.get_transform().transform(list(zip(line.get_xdata(), line.get_ydata(), strict=True)))
    )[:, 0]
    assert (left, right) == (pytest.approx(0.0), pytest.approx(1.0))


def test_an_average_over_other_data_sets_is_not_joined_to_the_one_before():
    average = panels(BENCHMARK)[-1]
    assert [series.title for series in average.series] == list(METHODS)
    assert all(series.groups == (0, 1) for series in average.series)
    axes = accuracy_figure(BENCHMARK).axes[-1]
    lines = [c for c in axes.containers if c.get_label() == "SAFE"]
    assert [len(line.lines[0].get_xdata()) for line in lines] == [1, 1]


def test_shots_lie_on_a_logarithmic_axis_with_whole_numbers():
    for axes in accuracy_figure(BENCHMARK).axes:
        assert axes.get_xscale() == "log"
        positions = axes.transData.transform([(1, 30), (4, 30), (16, 30)])[:, 0]
        assert positions[1] - positions[0] == pytest.approx(positions[2] - positions[1])
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "16"]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return math.fsum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_methods_differ_by_marker_and_line_and_all_stand_out_from_white():
    axes = accuracy_figure(BENCHMARK).axes[0]
    looks = {}
    for method in ("Tuned pooling", "SAFE"):
        line = next(c for c in axes.containers if c.get_label() == method).lines[0]
        looks[line.get_marker(), line.get_linestyle()] = line.get_color()
    (zero,) = [line for line in axes.lines if line.get_label() == "zero-shot"]
    looks[zero.get_marker(), zero.get_linestyle()] = zero.get_color()
    assert len(looks) == len(set(looks.values())) == 3
    for colour in looks.values():
        assert 1.05 / (luminance(colour) + 0.05) > 3


def test_safe_has_its_colour_wherever_it_stands_and_no_two_methods_look_alike():
    methods = [f"method_{number}" for number in range(23)]
    styles = styles_of(["zero_shot", *methods, "safe"])
    assert styles["safe"].look["color"] == styles_of(["safe"])["safe"].look["color"] == "#0072B2"
    looks = {(s.look["color"], s.look["linestyle"], s.look["marker"]) for s in styles.values()}
    assert len(looks) == len({look[:2] for look in looks}) == 25
    for style in styles.values():
        assert 1.05 / (luminance(style.look["color"]) + 0.05) > 3
    places = sorted(style.aside for name, style in styles.items() if name != "zero_shot")
    assert (places[0], places[-1]) == pytest.approx((-6.0, 6.0))
    assert styles_of(["safe"])["safe"].aside == 0.0


def test_the_legend_has_safe_first_and_zero_shot_last():
    (legend,) = accuracy_figure(BENCHMARK).legends
    labels = [label.get_text() for label in legend.get_texts()]
    assert labels == ["SAFE", "Tuned pooling", "zero-shot"]


def test_the_files_are_a_png_and_an_svg_that_are_the_same_every_time():
    first, second = (accuracy_figure(BENCHMARK) for _ in range(2))
    png, svg = render(first, "png"), render(first, "svg")
    assert (png, svg) == (render(second, "png"), render(second, "svg"))
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.size == (580, 590)
        assert np.asarray(image.convert("L")).std() > 5
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_nothing_is_drawn_outside_the_picture():
    figure = accuracy_figure(BENCHMARK)
    render(figure, "png")
    width, height = figure.canvas.get_width_height()
    for artist in [*figure.legends, *figure.axes]:
        box = artist.get_tightbbox()
        assert 0 <= box.x0 <= box.x1 <= width
        assert 0 <= box.y0 <= box.y1 <= height


def test_matplotlib_is_imported_only_when_a_figure_is_drawn():
    code = "import sys, safe_ray.report.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
