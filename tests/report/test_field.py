from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from safe_ray.errors import InputError
from safe_ray.report import TaskResult
from safe_ray.report.field import Benchmark, FieldTable, field_tables
from safe_ray.report.field_text import CHOSEN_ON_TEST, NOT_KNOWN, csv_text, markdown
from safe_ray.report.published import Published, Reference
from safe_ray.report.rows import summarise
from tests.report.results import on_test, result

SEEDS = (1, 2, 3)
# Birds and foods at 1 and 16 shots, cars at 1 shot only; every seed has its own accuracy.
RESULTS = tuple(
    result(
        dataset,
        shots,
        seed,
        zero_shot=0.30 + 0.1 * index,
        accuracy=accuracy + 0.1 * index,
        method=method,
    )
    for index, (dataset, all_shots) in enumerate(
        {"birds": (1, 16), "foods": (1, 16), "cars": (1,)}.items()
    )
    for shots in all_shots
    for seed in SEEDS
    for method, accuracy in (
        ("tuned_pooling", 0.35 + 0.02 * seed),
        ("safe", 0.40 + 0.01 * seed * seed + 0.001 * shots),
    )
)
ORDER = ("foods", "cars", "birds")
BENCHMARK = Benchmark("trial", "tiny", RESULTS, ORDER)

PRINTED = Published(
    method="Printed-F",
    source="a log",
    protocol="The epoch was picked by test accuracy.",
    chosen_on_test=True,
    prompts="templates",
    checked="at_source",
    averages={1: 40.5, 16: 46.88},
    accuracies={16: {"birds": 41.5, "foods": 52.25}},
)
FAIR = Published(
    "Fair", "a paper", "Nothing was chosen.", False, "descriptions", "second_hand", {16: 45.0}, {}
)
PLAIN = Published("Plain", "a table", "Some.", None, "templates", "at_source", {0: 33.3}, {})
REFERENCE = Reference("tiny", (1, 16), ("birds", "foods"), (PRINTED, FAIR, PLAIN))
TWO = tuple(r for r in RESULTS if r.dataset != "cars")


def table(benchmark: Benchmark, method: str) -> FieldTable:
    return next(t for t in field_tables(benchmark) if t.title == method)


def section(text: str, heading: str) -> list[str]:
    lines = text.splitlines()
    start = lines.index(f"## {heading}")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("## ")), len(lines))
    return [line for line in lines[start:end] if line.startswith("|")]


def test_rows_are_shots_and_columns_are_data_sets_in_the_order_asked_for():
    safe = table(BENCHMARK, "SAFE")
    assert safe.datasets == ORDER
    assert [row.shots for row in safe.rows] == [1, 16]
    assert [cell is None for cell in safe.rows[1].cells] == [False, True, False]


def test_a_data_set_that_the_order_leaves_out_comes_last_and_one_without_results_not_at_all():
    some = dataclasses.replace(BENCHMARK, datasets=("cars", "planes"))
    assert some.columns() == ("cars", "birds", "foods")


@pytest.mark.parametrize(
    ("method", "field"),
    [
        ("zero-shot", "zero_shot"),
        ("Tuned pooling", "accuracy"),
        ("SAFE", "accuracy"),
        ("SAFE minus zero-shot", "gain"),
        ("Tuned pooling minus zero-shot", "gain"),
    ],
)
def test_a_cell_is_the_mean_and_interval_that_a_sweeps_table_has(method: str, field: str):
    of = "safe" if "SAFE" in method else "tuned_pooling"
    rows = {
        (row.dataset, row.shots): getattr(row, field)
        for row in summarise(RESULTS)
        if row.method == of
    }
    made = table(BENCHMARK, method)
    for row in made.rows:
        for dataset, cell in zip(made.datasets, row.cells, strict=True):
            assert cell == rows.get((dataset, row.shots))
        assert row.average == rows["average", row.shots]


def test_there_is_a_table_a_method_then_its_difference_and_both_by_class():
    per_class = ", mean per class"
    accuracies = ["Tuned pooling", "SAFE"]
    differences = [f"{name} minus zero-shot" for name in accuracies]
    assert [made.title for made in field_tables(BENCHMARK)] == [
        "zero-shot",
        *accuracies,
        *differences,
        *(title + per_class for title in (*accuracies, *differences)),
    ]


def test_zero_shot_has_its_table_whether_or_not_it_was_run_as_a_method():
    run = [
        result(r.dataset, r.shots, r.seed, accuracy=zero, zero_shot=zero, method="zero_shot")
        for r in RESULTS
        if r.method == "safe"
        for zero in (r.test.accuracy["zero_shot"],)
    ]
    both = dataclasses.replace(BENCHMARK, results=(*RESULTS, *run))
    assert field_tables(both) == field_tables(BENCHMARK)
    alone = dataclasses.replace(BENCHMARK, results=tuple(run))
    assert field_tables(alone) == (table(BENCHMARK, "zero-shot"),)


def test_averages_are_over_the_data_sets_that_every_method_has():
    lacking = tuple(
        r for r in RESULTS if (r.dataset, r.method) != ("foods", "tuned_pooling") or r.shots == 16
    )
    benchmark = dataclasses.replace(BENCHMARK, results=lacking)
    for method in ("zero-shot", "SAFE", "Tuned pooling"):
        first = table(benchmark, method).rows[0]
        assert first.averaged == ("birds", "cars")
        cells = dict(zip(ORDER, first.cells, strict=True))
        mean = (cells["birds"].mean + cells["cars"].mean) / 2
        assert first.average.mean == pytest.approx(mean)
    assert section(markdown(benchmark), "SAFE")[2].endswith("** (of 2) |")


def test_an_average_over_fewer_data_sets_says_over_how_many():
    one, sixteen = table(BENCHMARK, "SAFE").rows
    assert one.averaged == ("birds", "cars", "foods")
    assert sixteen.averaged == ("birds", "foods")
    lines = section(markdown(BENCHMARK), "SAFE")
    assert "(of" not in lines[2]
    assert lines[3].endswith("** (of 2) |")


def test_the_printed_table_has_per_cent_with_intervals_and_gaps():
    lines = section(markdown(BENCHMARK), "Tuned pooling")
    assert lines[0] == "| shots | seeds | foods | cars | birds | average |"
    # t(2, 0.975) = 4.303 times 2 / sqrt(3).
    assert lines[3] == "| 16 | 3 | 49.0 ± 5.0 | - | 39.0 ± 5.0 | **44.0 ± 5.0** (of 2) |"


def test_differences_carry_their_sign():
    lines = section(markdown(BENCHMARK), "SAFE minus zero-shot")
    assert lines[2].split(" | ")[2].startswith("+")


def test_a_single_data_set_has_no_average():
    alone = Benchmark("one", "tiny", tuple(r for r in RESULTS if r.dataset == "cars"))
    assert section(markdown(alone), "SAFE")[0] == "| shots | seeds | cars |"


def test_seeds_that_differ_between_data_sets_are_said():
    uneven = Benchmark("uneven", "tiny", RESULTS[:-1])
    assert section(markdown(uneven), "SAFE")[2].startswith("| 1 | 2 to 3 |")


def test_every_table_says_how_winners_were_chosen_and_that_no_test_image_was_looked_at():
    text = markdown(BENCHMARK)
    line = (
        "_Selection: coop; metric: accuracy; convention: coop; prompts: single; nothing was chosen "
        "on a test image._"
    )
    assert text.count(line) == text.count("## ") == 1 + 4 * 2
    assert "chosen for their accuracy on a few validation images a class, at most four" in text
    assert "(`coop`; 40 images a task)" in text


def with_protocol(value: TaskResult, **changes: object) -> TaskResult:
    return dataclasses.replace(value, protocol=dataclasses.replace(value.protocol, **changes))


def test_results_of_two_protocols_are_told_apart():
    mixed = [
        with_protocol(r, selection="cross", validation_samples=20) if r.dataset == "cars" else r
        for r in RESULTS
    ]
    text = markdown(Benchmark("mixed", "tiny", tuple(mixed)))
    assert (
        "every winner of cars (shots: 1) were chosen for their accuracy by cross-validation" in text
    )
    assert "every winner of birds (shots: 1, 16), foods (shots: 1, 16) were" in text
    assert "selection: coop and cross".capitalize() in text


def test_protocols_that_differ_by_method_are_told_apart_by_its_title():
    mixed = tuple(
        with_protocol(r, selection="full") if r.method == "tuned_pooling" else r for r in RESULTS
    )
    text = markdown(dataclasses.replace(BENCHMARK, results=mixed))
    places = "in the tasks of birds (shots: 1, 16), cars (shots: 1), foods (shots: 1, 16)"
    for title, how in (("SAFE", "on a few"), ("Tuned pooling", "on the whole validation split")):
        assert f"every winner of {title} {places} were chosen for their accuracy {how}" in text


def test_published_figures_stand_beside_ours_with_a_marker_on_what_was_chosen_on_test():
    benchmark = Benchmark("trial", "tiny", TWO, ("foods", "birds"), REFERENCE)
    text = markdown(benchmark)
    lines = section(text, "Beside published figures, 16 shots")
    assert lines[0] == "| method | foods | birds | average |"
    assert lines[2] == f"| Printed-F{CHOSEN_ON_TEST} [1] | 52.25 | 41.50 | 46.88 |"
    assert lines[3] == "| Fair [3] | - | - | 45.00 |"
    assert lines[4] == f"| Plain{NOT_KNOWN} [2] | - | - | 33.30 |"
    ours = section(text, "SAFE")[3].removeprefix("| 16 | 3 |").replace("**", "")
    assert lines[-1].replace("**", "") == f"| SAFE, this benchmark |{ours}"
    assert [line.split("**")[1] for line in lines[5:]] == ["zero-shot", "Tuned pooling", "SAFE"]
    assert "1. Printed-F: a log. The epoch was picked by test accuracy.\n" in text
    assert "3. Fair: a paper. Nothing was chosen. Its prompts are sentences about each" in text
    assert f"{CHOSEN_ON_TEST} Something was chosen by the accuracy on the test split." in text
    assert f"{NOT_KNOWN} Whether anything was chosen by the accuracy" in text


def test_published_figures_stand_beside_ours_at_every_number_of_shots_that_has_any():
    text = markdown(Benchmark("trial", "tiny", TWO, ("foods", "birds"), REFERENCE))
    lines = section(text, "Beside published figures, 1 shot")
    # A figure that holds for any number of shots is there, and Fair has none here.
    assert lines[2:4] == [
        f"| Printed-F{CHOSEN_ON_TEST} [1] | - | - | 40.50 |",
        f"| Plain{NOT_KNOWN} [2] | - | - | 33.30 |",
    ]
    assert lines[-1].startswith("| **SAFE**, this benchmark | 5")
    assert text.count("1. Printed-F: ") == 1


def test_published_averages_over_other_data_sets_are_left_out():
    wider = dataclasses.replace(REFERENCE, datasets=("birds", "foods", "planes"))
    text = markdown(Benchmark("trial", "tiny", TWO, ("foods", "birds"), wider))
    lines = section(text, "Beside published figures, 16 shots")
    assert lines[0] == "| method | foods | birds |"
    assert not any("Fair" in line for line in lines)
    assert "The published averages are over other data sets, and left out." in text


@pytest.mark.parametrize(
    "change",
    [{"shots": (8,)}, {"backbone": "rn50"}, {"datasets": ("planes",)}],
    ids=["other shots", "another backbone", "other data sets"],
)
def test_what_does_not_compare_is_not_printed_beside(change: dict):
    reference = dataclasses.replace(REFERENCE, **change)
    benchmark = Benchmark("trial", "tiny", TWO, (), reference)
    assert "Beside published" not in markdown(benchmark)
    assert "a log" not in csv_text(benchmark)


def test_heads_tested_on_other_sets_have_a_table_of_their_own():
    def moved(value: TaskResult) -> TaskResult:
        shift = on_test(0.2, 0.3 + 0.02 * value.seed, 50, method=value.method)
        return dataclasses.replace(value, targets={"sketch": shift, "v2": value.test})

    results = tuple(moved(r) if r.dataset == "birds" else r for r in RESULTS)
    text = markdown(Benchmark("trial", "tiny", results, ORDER))
    lines = section(text, "Heads of birds on other test sets")
    assert lines[0] == "| method | shots | sketch | v2 | average |"
    v2 = section(text, "SAFE")[3].split(" | ")[4]
    safe = next(line for line in lines if line.startswith("| SAFE | 16 |"))
    assert safe.split(" | ")[2:4] == ["34.0 ± 5.0", v2]
    assert "Tuned and chosen on birds, without a look at these sets." in text
    cells = list(csv.DictReader(io.StringIO(csv_text(Benchmark("", "", results)))))
    assert {c["dataset"] for c in cells if c["source"] == "heads of birds"} == {
        "sketch",
        "v2",
        "average",
    }


def test_the_csv_has_every_cell_in_full_precision():
    reference = dataclasses.replace(REFERENCE, datasets=("birds", "cars", "foods"))
    benchmark = Benchmark("trial", "tiny", RESULTS, ORDER, reference)
    cells = {
        (line["method"], line["dataset"], int(line["shots"])): line
        for line in csv.DictReader(io.StringIO(csv_text(benchmark)))
    }
    for made in field_tables(benchmark):
        for row in made.rows:
            for name, cell in zip(
                (*made.datasets, "average"), (*row.cells, row.average), strict=True
            ):
                line = cells.get((made.title, name, row.shots))
                assert (line is None) == (cell is None)
                if line is not None and cell is not None:
                    assert float(line["accuracy"]) == cell.mean
                    assert float(line["half_width"]) == cell.half_width
                    assert (line["selection"], line["seeds"]) == ("coop", "3")
    printed = cells["Printed-F", "birds", 16]
    assert cells["Plain", "average", 1]["chosen_on_test"] == ""
    assert (printed["accuracy"], printed["chosen_on_test"], printed["source"]) == (
        "0.415",
        "true",
        "a log",
    )


def test_a_task_and_method_that_two_sweeps_have_are_refused():
    words = "2 results for the task birds-1shot-seed1 by the method tuned_pooling"
    with pytest.raises(InputError, match=words):
        markdown(Benchmark("twice", "tiny", (*RESULTS, RESULTS[0])))


def test_no_result_is_refused():
    with pytest.raises(InputError, match="no result"):
        csv_text(Benchmark("none", "tiny", ()))
