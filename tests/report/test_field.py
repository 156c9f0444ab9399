from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from safe_ray.errors import InputError
from safe_ray.report import TaskResult
from safe_ray.report.field import (
    CHOSEN_ON_TEST,
    Benchmark,
    FieldTable,
    Published,
    Reference,
    csv_text,
    field_tables,
    markdown,
)
from safe_ray.report.tables import summarise
from tests.report.results import on_test, result

SEEDS = (1, 2, 3)
# Birds and foods at 1 and 16 shots, cars at 1 shot only; every seed has its own accuracy.
RESULTS = tuple(
    result(
        dataset,
        shots,
        seed,
        zero_shot=0.30 + 0.1 * index,
        tuned_only=0.35 + 0.1 * index + 0.02 * seed,
        safe=0.40 + 0.1 * index + 0.01 * seed * seed + 0.001 * shots,
    )
    for index, (dataset, all_shots) in enumerate(
        {"birds": (1, 16), "foods": (1, 16), "cars": (1,)}.items()
    )
    for shots in all_shots
    for seed in SEEDS
)
ORDER = ("foods", "cars", "birds")
BENCHMARK = Benchmark("trial", "tiny", RESULTS, ORDER)

PRINTED = Published(
    method="Printed-F",
    source="a log",
    protocol="The epoch was picked by test accuracy.",
    chosen_on_test=True,
    accuracies={"birds": 41.5, "foods": 52.25},
    average=46.88,
)
FAIR = Published("Fair", "a paper", "Nothing was chosen.", False, {}, 45.0)
REFERENCE = Reference("tiny", 16, ("birds", "foods"), (PRINTED, FAIR))
TWO = tuple(r for r in RESULTS if r.dataset != "cars")


def table(benchmark: Benchmark, method: str) -> FieldTable:
    return next(t for t in field_tables(benchmark) if t.method == method)


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
        ("tuned only", "tuned_only"),
        ("SAFE", "safe"),
        ("SAFE minus zero-shot", "gain"),
    ],
)
def test_a_cell_is_the_mean_and_interval_that_a_sweeps_table_has(method: str, field: str):
    rows = {(row.dataset, row.shots): getattr(row, field) for row in summarise(RESULTS)}
    made = table(BENCHMARK, method)
    for row in made.rows:
        for dataset, cell in zip(made.datasets, row.cells, strict=True):
            assert cell == rows.get((dataset, row.shots))
        assert row.average == rows["average", row.shots]


def test_an_average_over_fewer_data_sets_says_over_how_many():
    one, sixteen = table(BENCHMARK, "SAFE").rows
    assert (one.averaged, sixteen.averaged) == (3, 2)
    lines = section(markdown(BENCHMARK), "SAFE")
    assert "(of" not in lines[2]
    assert lines[3].endswith("** (of 2) |")


def test_the_printed_table_has_per_cent_with_intervals_and_gaps():
    lines = section(markdown(BENCHMARK), "Tuned only")
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
    assert text.count(line) == text.count("## ") == 6
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
        "every task of cars (shots: 1) were chosen for their accuracy by cross-validation" in text
    )
    assert "every task of birds (shots: 1, 16), foods (shots: 1, 16) were" in text
    assert "selection: coop and cross".capitalize() in text


def test_published_figures_stand_beside_ours_with_a_marker_on_what_was_chosen_on_test():
    benchmark = Benchmark("trial", "tiny", TWO, ("foods", "birds"), REFERENCE)
    text = markdown(benchmark)
    lines = section(text, "Beside published figures, 16 shots")
    assert lines[0] == "| method | foods | birds | average |"
    assert lines[2] == f"| Printed-F{CHOSEN_ON_TEST} [1] | 52.25 | 41.50 | 46.88 |"
    assert lines[3] == "| Fair [2] | - | - | 45.00 |"
    ours = section(text, "SAFE")[3].removeprefix("| 16 | 3 |").replace("**", "")
    assert lines[-1].replace("**", "") == f"| SAFE, this benchmark |{ours}"
    assert "1. Printed-F: a log. The epoch was picked by test accuracy." in text
    assert f"{CHOSEN_ON_TEST} Something was chosen by the accuracy on the test split." in text


def test_published_averages_over_other_data_sets_are_left_out():
    wider = dataclasses.replace(REFERENCE, datasets=("birds", "foods", "planes"))
    text = markdown(Benchmark("trial", "tiny", TWO, ("foods", "birds"), wider))
    lines = section(text, "Beside published figures, 16 shots")
    assert lines[0] == "| method | foods | birds |"
    assert not any("Fair" in line for line in lines)
    assert "The published averages are over other data sets, and left out." in text


@pytest.mark.parametrize(
    "change",
    [{"shots": 8}, {"backbone": "rn50"}, {"datasets": ("planes",)}],
    ids=["other shots", "another backbone", "other data sets"],
)
def test_what_does_not_compare_is_not_printed_beside(change: dict):
    reference = dataclasses.replace(REFERENCE, **change)
    benchmark = Benchmark("trial", "tiny", TWO, (), reference)
    assert "Beside published" not in markdown(benchmark)
    assert "a log" not in csv_text(benchmark)


def test_heads_tested_on_other_sets_have_a_table_of_their_own():
    def moved(value: TaskResult) -> TaskResult:
        shift = on_test(0.2, 0.25 + 0.02 * value.seed, 0.3 + 0.02 * value.seed, 50)
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
    benchmark = Benchmark("trial", "tiny", RESULTS, ORDER, REFERENCE)
    cells = {
        (line["method"], line["dataset"], int(line["shots"])): line
        for line in csv.DictReader(io.StringIO(csv_text(benchmark)))
    }
    for made in field_tables(benchmark):
        for row in made.rows:
            for name, cell in zip(
                (*made.datasets, "average"), (*row.cells, row.average), strict=True
            ):
                line = cells.get((made.method, name, row.shots))
                assert (line is None) == (cell is None)
                if line is not None and cell is not None:
                    assert float(line["accuracy"]) == cell.mean
                    assert float(line["half_width"]) == cell.half_width
                    assert (line["selection"], line["seeds"]) == ("coop", "3")
    printed = cells["Printed-F", "birds", 16]
    assert (printed["accuracy"], printed["chosen_on_test"], printed["source"]) == (
        "0.415",
        "true",
        "a log",
    )


def test_a_task_that_two_sweeps_have_is_refused():
    with pytest.raises(InputError, match="2 results for the task birds-1shot-seed1"):
        markdown(Benchmark("twice", "tiny", (*RESULTS, RESULTS[0])))


def test_no_result_is_refused():
    with pytest.raises(InputError, match="no result"):
        csv_text(Benchmark("none", "tiny", ()))
