"""Tables whose intervals are over seeds and test images."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest

from safe_ray.report import TaskResult, print_table, write_report
from safe_ray.report.correct import Correct
from safe_ray.report.field import Benchmark, field_tables
from safe_ray.report.field_text import markdown as field_markdown
from safe_ray.report.intervals import crossed_draws, mean_interval
from safe_ray.report.outcomes import Outcomes
from safe_ray.report.rows import summarise
from safe_ray.report.tables import markdown
from tests.report.results import crossed_bootstrap, on_test, result

IMAGES = 120
CHANCES = {"zero_shot": 0.5, "safe": 0.6, "gda": 0.55}


def drawn(
    datasets: tuple[str, ...] = ("birds", "foods"),
    seeds: tuple[int, ...] = (1, 2, 3),
    methods: tuple[str, ...] = ("safe", "gda"),
) -> tuple[list[TaskResult], list[Correct]]:
    """Results whose accuracies are those of the outcomes beside them."""
    generator = np.random.default_rng(0)
    results, correct = [], []
    for dataset in datasets:
        ease = generator.random(IMAGES)
        before = ease < CHANCES["zero_shot"]
        for seed in seeds:
            correct.append(Correct(dataset, 2, seed, "zero_shot", before))
            for method in methods:
                right = ease + generator.normal(0, 0.2, IMAGES) < CHANCES[method]
                correct.append(Correct(dataset, 2, seed, method, right))
                results.append(
                    result(
                        dataset, 2, seed, float(before.mean()), float(right.mean()), method=method
                    )
                )
    return results, correct


def stacked(correct: list[Correct], dataset: str, method: str) -> np.ndarray:
    rows = [row.right for row in correct if (row.dataset, row.method) == (dataset, method)]
    return np.stack(rows).astype(np.int8)


def test_a_row_has_the_bootstrap_of_its_outcomes_and_the_means_it_has_without():
    results, correct = drawn()
    rows = summarise(results, outcomes=Outcomes(correct))
    plain = summarise(results)
    for row, before in zip(rows, plain, strict=True):
        for mine, other in (
            (row.zero_shot, before.zero_shot),
            (row.accuracy, before.accuracy),
            (row.gain, before.gain),
        ):
            assert (mine.mean, mine.count) == (other.mean, other.count)
            assert mine.bounds is not None
            assert other.bounds is None
    row = rows[0]
    assert (row.dataset, row.method) == ("birds", "safe")
    right = stacked(correct, "birds", "safe")
    before = stacked(correct, "birds", "zero_shot")
    for interval, values in (
        (row.accuracy, right),
        (row.zero_shot, before),
        (row.gain, right - before),
    ):
        expected = crossed_bootstrap(values, draws=20_000, seed=1)
        assert interval.mean == pytest.approx(expected.mean)
        assert interval.low == pytest.approx(expected.low, abs=0.1 * expected.half_width)
        assert interval.high == pytest.approx(expected.high, abs=0.1 * expected.half_width)


def test_an_average_draws_every_data_set_on_its_own():
    results, correct = drawn()
    rows = summarise(results, outcomes=Outcomes(correct))
    average = next(row for row in rows if row.is_average and row.method == "safe")
    draws = [
        crossed_draws(stacked(correct, name, "safe"), 20_000, number)
        for number, name in enumerate(("birds", "foods"))
    ]
    low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
    assert average.accuracy.half_width == pytest.approx((high - low) / 2, rel=0.1)
    # Data sets that were drawn alike would make it wider by the root of two.
    alone = [row.accuracy.half_width for row in rows if row.method == "safe"][:2]
    assert average.accuracy.half_width < 0.85 * max(alone)


def test_an_average_is_over_the_seeds_that_all_have():
    results, correct = drawn()
    lacking = [r for r in results if (r.dataset, r.seed, r.method) != ("foods", 3, "gda")]
    rows = summarise(lacking, outcomes=Outcomes(correct))
    for average in (row for row in rows if row.is_average):
        first = [r for r in lacking if r.method == average.method and r.seed < 3]
        assert average.seeds == average.accuracy.count == 2
        assert average.accuracy.mean == pytest.approx(
            np.mean([r.test.accuracy[r.method] for r in first])
        )
        assert average.accuracy.low < average.accuracy.mean < average.accuracy.high


def test_one_seed_has_an_interval_over_its_images():
    results, correct = drawn(seeds=(1,), methods=("safe",))
    text = markdown(results, correct)
    for line in text.splitlines()[2:5]:
        assert line.count("±") == 3
        assert "one seed" in line
    assert "bootstrap which draws seeds and test images together" in text
    assert "Below three seeds" not in text


def test_outcomes_that_are_not_of_the_results_are_not_used():
    results, correct = drawn()
    for other in (
        [row for row in correct if row.method != "zero_shot"],
        [dataclasses.replace(row, right=~row.right) for row in correct],
        [dataclasses.replace(row, right=np.repeat(row.right, 2)) for row in correct],
        [row for row in correct if row.seed != 2],
    ):
        assert summarise(results, outcomes=Outcomes(other)) == summarise(results)
    assert markdown(results, [row for row in correct if row.seed != 2]) == markdown(results)


def test_what_has_no_outcomes_keeps_students_t_and_the_note_says_so():
    results, correct = drawn(methods=("safe",))
    per_class = {"zero_shot": 0.25, "safe": 0.75}
    moved = [
        dataclasses.replace(
            r,
            test=dataclasses.replace(r.test, mean_per_class=per_class),
            targets={"sketch": on_test(0.2, 0.2 + 0.1 * r.seed)},
        )
        for r in results
    ]
    rows = {row.dataset: row for row in summarise(moved, outcomes=Outcomes(correct))}
    expected = mean_interval([0.3, 0.4, 0.5])
    assert rows["birds on sketch"].accuracy.half_width == pytest.approx(expected.half_width)
    assert rows["birds on sketch"].accuracy.bounds is None
    by_class = summarise(moved, "mean_per_class", Outcomes(correct))
    assert by_class == summarise(moved, "mean_per_class")
    text = markdown(moved, correct)
    assert text.count("Mean per class accuracy: ") == 1
    assert "have Student's t over seeds instead. Below three seeds there is no interval" in text


def test_intervals_of_two_kinds_alone_make_no_second_table():
    results, correct = drawn()
    assert "per class" not in markdown(results, correct)


def test_the_report_of_a_sweep_and_its_console_have_these_intervals(tmp_path: Path):
    results, correct = drawn()
    *_, text = write_report(results, tmp_path, correct=correct)
    assert text.read_text() == markdown(results, correct) != markdown(results)
    raw = io.StringIO()
    print_table(results, raw, correct)
    row = summarise(results, outcomes=Outcomes(correct))[0]
    cell = f"{100 * row.accuracy.mean:.1f} ± {100 * row.accuracy.half_width:.1f}"
    assert cell in raw.getvalue()
    assert cell in text.read_text()


def test_a_benchmark_has_them_in_its_tables():
    results, correct = drawn()
    outcomes = Outcomes(correct)
    benchmark = Benchmark("trial", "tiny", tuple(results), outcomes=outcomes)
    rows = summarise(results, outcomes=outcomes)
    tables = {table.title: table for table in field_tables(benchmark)}
    for title, method in (("SAFE", "safe"), ("GDA", "gda")):
        (body,) = tables[title].rows
        found = [row.accuracy for row in rows if row.method == method]
        assert [*body.cells, body.average] == found
    (body,) = tables["zero-shot"].rows
    assert all(cell.bounds is not None for cell in (*body.cells, body.average))
    assert "bootstrap which draws seeds and test images" in field_markdown(benchmark)
