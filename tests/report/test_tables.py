from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy import stats

from safe_ray.report import print_table, read_summary, write_report
from safe_ray.report.parquet import flat
from safe_ray.report.rows import summarise, titles_of
from safe_ray.report.tables import markdown
from safe_ray.specs import ALL_SHOTS
from tests.report.results import on_test, result

THREE_SEEDS = [
    result("foods", 2, 1, zero_shot=0.50, accuracy=0.58),
    result("foods", 2, 2, zero_shot=0.50, accuracy=0.61),
    result("foods", 2, 3, zero_shot=0.50, accuracy=0.60),
    result("birds", 2, 1, zero_shot=0.30, accuracy=0.42),
    result("birds", 2, 2, zero_shot=0.30, accuracy=0.45),
    result("birds", 2, 3, zero_shot=0.30, accuracy=0.39),
]


COLUMNS = (
    "data set",
    "shots",
    "seeds",
    "chosen by",
    "zero-shot",
    "SAFE",
    "SAFE minus zero-shot",
)

SEVERAL = ("safe", "gda", "zero_shot")
# GDA is without birds at 16 shots, and without its third seed at 2; zero-shot is everywhere.
MIXED = [
    result(
        dataset,
        shots,
        seed,
        zero_shot=0.3 + 0.1 * place,
        accuracy=0.3
        + 0.1 * place
        + (method != "zero_shot") * (0.02 * seed + 0.1 * (method == "gda")),
        method=method,
    )
    for place, dataset in enumerate(("birds", "foods", "cars"))
    for shots in (2, 16)
    for seed in (1, 2, 3)
    for method in SEVERAL
    if (dataset, shots, method) != ("birds", 16, "gda")
    and (dataset, shots, seed, method) != ("birds", 2, 3, "gda")
]


def printed(results, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_table(results, stream)
    stream.flush()
    return raw.getvalue().decode(encoding)


def test_a_row_is_a_mean_over_seeds_with_its_interval() -> None:
    birds, foods, _ = summarise(THREE_SEEDS)
    assert (birds.dataset, birds.shots, birds.seeds) == ("birds", 2, 3)
    assert foods.accuracy.mean == pytest.approx((0.58 + 0.61 + 0.60) / 3)
    low, high = stats.t.interval(
        0.95, 2, loc=foods.accuracy.mean, scale=stats.sem([0.58, 0.61, 0.60])
    )
    assert (foods.accuracy.low, foods.accuracy.high) == (pytest.approx(low), pytest.approx(high))
    assert foods.zero_shot.half_width == pytest.approx(0)
    assert foods.gain.mean == pytest.approx(foods.accuracy.mean - 0.5)


def test_the_difference_is_paired_by_seed() -> None:
    moving = [
        result(seed=1, zero_shot=0.3, accuracy=0.4),
        result(seed=2, zero_shot=0.5, accuracy=0.6),
        result(seed=3, zero_shot=0.7, accuracy=0.8),
    ]
    (row,) = summarise(moving)
    assert row.accuracy.half_width > 0.3
    assert row.gain.half_width == pytest.approx(0, abs=1e-9)


def test_the_average_is_taken_seed_by_seed() -> None:
    average = summarise(THREE_SEEDS)[-1]
    per_seed = [(0.58 + 0.42) / 2, (0.61 + 0.45) / 2, (0.60 + 0.39) / 2]
    assert average.is_average
    assert average.seeds == 3
    assert average.accuracy.mean == pytest.approx(sum(per_seed) / 3)
    half = stats.t.ppf(0.975, 2) * stats.sem(per_seed)
    assert average.accuracy.half_width == pytest.approx(half)


def test_an_average_uses_the_seeds_that_all_data_sets_have() -> None:
    average = summarise(THREE_SEEDS[:-1])[-1]
    assert average.seeds == 2
    apart = [result("foods", 2, 1, accuracy=0.5), result("birds", 2, 2, accuracy=0.7)]
    without = summarise(apart)[-1]
    assert without.accuracy.mean == pytest.approx(0.6)
    assert without.accuracy.half_width is None


def test_every_number_of_shots_has_its_rows_and_its_average() -> None:
    tasks = [result(d, s, 1) for d in ("foods", "birds") for s in (1, 16)]
    rows = [(row.dataset, row.shots) for row in summarise(tasks)]
    assert rows == [
        ("birds", 1),
        ("birds", 16),
        ("foods", 1),
        ("foods", 16),
        ("average", 1),
        ("average", 16),
    ]


def test_one_data_set_has_no_average() -> None:
    assert [row.dataset for row in summarise(THREE_SEEDS[:3])] == ["foods"]


def test_one_seed_is_said_and_has_no_interval() -> None:
    text = printed([result()])
    assert "one seed" in text
    line = next(line for line in text.splitlines() if "foods" in line)
    assert "±" not in line
    assert "+10.0" in line


def test_two_seeds_are_said_in_words_and_have_no_interval() -> None:
    apart = [result(seed=1, accuracy=0.3), result(seed=2, accuracy=0.5)]
    text = printed(apart)
    line = next(line for line in text.splitlines() if "foods" in line)
    assert line.split()[2:4] == ["two", "seeds"]
    assert "±" not in line
    assert "-10.0" in line
    assert "Below three seeds there is no interval" in text
    assert "| foods | 2 | two seeds | coop | 50.0 | 40.0 | -10.0 |" in markdown(apart)


def test_a_gain_that_validation_does_not_show_is_marked_in_its_row_and_said_below() -> None:
    doubtful = [result("birds"), result("foods", seed=1), result("foods", seed=2, gain_shown=False)]
    for text in (printed(doubtful), markdown(doubtful)):
        marked = [line for line in text.splitlines() if "! +10.0" in line]
        assert len(marked) == 1
        assert "foods" in marked[0]
        assert "! In 1 of 3 tasks the validation samples do not show a gain" in text
    for text in (printed(THREE_SEEDS), markdown(THREE_SEEDS)):
        assert "!" not in text


UNEQUAL = {"zero_shot": 0.4, "safe": 0.65}


def test_mean_per_class_accuracy_has_a_table_of_its_own_where_it_differs() -> None:
    tasks = [result("birds"), result("foods", per_class=UNEQUAL)]
    lines = [line for line in markdown(tasks).splitlines() if line.startswith("| foods")]
    assert lines == [
        "| foods | 2 | one seed | coop | 50.0 | 60.0 | +10.0 |",
        "| foods | 2 | one seed | coop | 40.0 | 65.0 | +25.0 |",
    ]
    text = printed(tasks)
    assert text.count("Mean per class accuracy") == 1
    assert text.count("Test accuracy in per cent") == 1
    assert "+25.0" in text
    average = summarise(tasks, "mean_per_class")[-1]
    assert average.gain.mean == pytest.approx((0.25 + 0.1) / 2)


def test_a_difference_that_rounding_hides_makes_no_second_table() -> None:
    nearly = {"zero_shot": 0.5 + 1e-9, "safe": 0.6}
    assert "per class" not in printed([result(per_class=nearly)])


def test_the_metric_that_chose_is_said_unless_it_is_accuracy() -> None:
    value = result()
    other = dataclasses.replace(
        value, protocol=dataclasses.replace(value.protocol, metric="mean_per_class")
    )
    assert "| coop, mean per class |" in markdown([other])


def test_a_pipe_gets_plain_text_in_per_cent_with_every_column() -> None:
    text = printed(THREE_SEEDS)
    assert "\x1b" not in text
    assert all(name in text for name in COLUMNS)
    assert "59.7 ± 3.8" in text
    assert "+9.7 ± 3.8" in text


def test_long_cells_are_not_cut_in_a_file() -> None:
    value = result("a_data_set_with_a_name_that_is_as_long_as_a_folder_of_ones_own_may_well_be")
    long = [
        dataclasses.replace(
            value,
            seed=seed,
            protocol=dataclasses.replace(value.protocol, metric="mean_per_class"),
            test=on_test(0.5, 0.5 + 0.1 * seed),
        )
        for seed in (1, 2, 3)
    ]
    text = printed(long)
    assert "…" not in text
    for cell in (value.dataset, "coop, mean per class", "+20.0 ± 24.8", *COLUMNS):
        assert cell in text


def test_ascii_is_enough(tmp_path: Path) -> None:
    text = printed(THREE_SEEDS, encoding="ascii")
    assert "59.7 +/- 3.8" in text
    assert "?" not in text


def test_names_with_brackets_are_printed_as_they_are() -> None:
    assert "[bold]food[/bold]" in printed([result("[bold]food[/bold]")])


def test_the_markdown_table_has_the_same_numbers() -> None:
    lines = markdown(THREE_SEEDS).splitlines()
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert "| foods | 2 | 3 | coop | 50.0 ± 0.0 | 59.7 ± 3.8 | +9.7 ± 3.8 |" in lines
    assert lines[4].startswith("| **average** |")


def test_several_methods_have_a_row_each_and_their_titles_a_column() -> None:
    lines = markdown(MIXED).splitlines()
    columns = ("data set", "shots", "seeds", "chosen by", "method", "zero-shot", "accuracy")
    assert lines[0] == f"| {' | '.join(columns)} | minus zero-shot |"
    cars = [line for line in lines if line.startswith("| cars | 2 |")]
    assert cars == [
        "| cars | 2 | 3 | coop | SAFE | 50.0 ± 0.0 | 54.0 ± 5.0 | +4.0 ± 5.0 |",
        "| cars | 2 | 3 | coop | GDA | 50.0 ± 0.0 | 64.0 ± 5.0 | +14.0 ± 5.0 |",
        "| cars | 2 | 3 | coop | Zero-shot | 50.0 ± 0.0 | 50.0 ± 0.0 | - |",
    ]
    text = printed(MIXED)
    assert all(name in text for name in (*columns, "minus zero-shot"))
    assert len([line for line in text.splitlines() if line.split()[:2] == ["cars", "2"]]) == 3


def test_averages_of_methods_are_over_the_data_sets_and_seeds_that_all_of_them_have() -> None:
    averages = {(row.shots, row.method): row for row in summarise(MIXED) if row.is_average}
    assert list(averages) == [(shots, method) for shots in (2, 16) for method in SEVERAL]
    for method in SEVERAL:
        two, sixteen = averages[2, method], averages[16, method]
        assert (two.dataset, two.averaged, two.seeds) == ("average", ("birds", "cars", "foods"), 2)
        assert (sixteen.dataset, sixteen.averaged) == ("average of 2", ("cars", "foods"))
        assert sixteen.seeds == 3
        gain = {"safe": 0.0, "gda": 0.1}.get(method)
        assert two.zero_shot.mean == pytest.approx(0.4)
        assert sixteen.zero_shot.mean == pytest.approx(0.45)
        if gain is None:
            assert two.gain is sixteen.gain is None
            assert two.accuracy == two.zero_shot
        else:
            assert two.gain.mean == pytest.approx(gain + 0.02 * (1 + 2) / 2)
            assert sixteen.gain.mean == pytest.approx(gain + 0.04)


def test_methods_are_in_the_order_of_the_task_that_has_most_of_them() -> None:
    first = [result("birds", method="gda"), result("birds", method="safe")]
    lacking = [result("ants", method="safe")]
    assert list(titles_of([*lacking, *first])) == ["gda", "safe"]


def test_methods_of_the_same_title_are_told_apart() -> None:
    twice = [result(), dataclasses.replace(result(method="gda"), title="SAFE")]
    assert titles_of(twice) == {"safe": "SAFE (safe)", "gda": "SAFE (gda)"}


def test_zero_shot_alone_has_no_difference() -> None:
    alone = [result(accuracy=0.5, method="zero_shot", gain_shown=False)]
    lines = markdown(alone).splitlines()
    assert lines[0] == "| data set | shots | seeds | chosen by | zero-shot |"
    assert lines[2] == "| foods | 2 | one seed | coop | 50.0 |"
    # What changes nothing cannot gain.
    assert "!" not in printed(alone)


def test_a_target_has_a_row_a_method() -> None:
    tasks = [
        result(method=method, targets={"sketch": on_test(0.2, accuracy, method=method)})
        for method, accuracy in (("safe", 0.3), ("gda", 0.15))
    ]
    rows = [row for row in summarise(tasks) if row.dataset == "foods on sketch"]
    assert [(row.method, round(row.gain.mean, 6)) for row in rows] == [
        ("safe", 0.1),
        ("gda", -0.05),
    ]


def test_a_doubtful_gain_among_several_methods_is_counted_among_the_results() -> None:
    tasks = [
        result(method=method, gain_shown=method == "safe", accuracy=0.5)
        for method in ("safe", "gda", "zero_shot")
    ]
    assert "! In 1 of 2 results the validation samples do not show a gain" in markdown(tasks)


def test_a_report_is_three_files_that_agree(tmp_path: Path) -> None:
    files = write_report(MIXED, tmp_path / "sweep")
    assert [file.name for file in files] == ["summary.json", "results.parquet", "results.md"]
    rows = pq.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    summary = read_summary(tmp_path / "sweep")
    assert [flat(s) for s in summary] == rows
    for row, s in zip(rows, summary, strict=True):
        assert (row["dataset"], row["seed"], row["method"]) == (s.dataset, s.seed, s.method)
        assert (row["title"], row["backbone"]) == (s.title, "tiny")
        assert row["test_accuracy"] == s.test.accuracy[s.method]
        assert row["test_macro_accuracy"] == s.test.mean_per_class[s.method]
        assert row["test_zero_shot"] == s.test.accuracy["zero_shot"]
        assert row["test_ece"] == s.test.ece[s.method]
        assert row["test_samples"] == s.test.samples
        assert row["best_lr"] == s.best["lr"]
        assert row["validation_gain_shown"] is s.validation.gain_shown
        assert row["protocol_metric"] == s.protocol.metric
    assert "data set" in (tmp_path / "sweep" / "results.md").read_text()


def test_the_parquet_file_has_a_column_for_every_value_that_any_method_has(tmp_path: Path) -> None:
    plain = dataclasses.replace(
        result(method="zero_shot", accuracy=0.5), best={}, head=None, mlflow_run_id=None
    )
    cache = dataclasses.replace(result(method="gda"), best={"gda_weight": 2.0, "alpha": 0.5})
    shifted = result(seed=2, targets={"sketch": on_test(0.25, 0.5)})
    write_report([plain, cache, shifted], tmp_path)
    table = pq.read_table(tmp_path / "results.parquet")
    found = {name: str(table.schema.field(name).type) for name in table.column_names}
    best = {name: kind for name, kind in found.items() if name.startswith("best_")}
    names = ("best_gda_weight", "best_alpha", "best_lr", "best_weight_decay", "best_epochs")
    assert best == dict.fromkeys(names, "double")
    assert table["best_alpha"].to_pylist() == [None, 0.5, 0.35]
    assert table["best_lr"].to_pylist() == [None, None, 1e-3]
    assert (table["head"][0].as_py(), table["mlflow_run_id"][0].as_py()) == (None, None)
    targets = [json.loads(text) for text in table["targets"].to_pylist()]
    assert [list(of_row) for of_row in targets] == [[], [], ["sketch"]]
    assert targets[2]["sketch"]["accuracy"] == {"zero_shot": 0.25, "safe": 0.5}


def test_the_markdown_file_names_the_tasks_without_a_result(tmp_path: Path) -> None:
    *_, text = write_report(THREE_SEEDS, tmp_path, ["b-2shot-seed1", "c-2shot-seed1"])
    assert text.read_text().endswith("\nWithout a result: b-2shot-seed1, c-2shot-seed1.\n")
    *_, text = write_report(THREE_SEEDS, tmp_path)
    assert "Without a result" not in text.read_text()


def test_the_metric_that_was_chosen_by_comes_first_and_both_are_there() -> None:
    entry = result(per_class={"zero_shot": 0.4, "safe": 0.7})
    protocol = dataclasses.replace(entry.protocol, metric="mean_per_class")
    text = markdown([dataclasses.replace(entry, protocol=protocol)])
    assert text.index("Mean per class accuracy:") < text.index("Accuracy over all test images:")
    assert text.index("| 70.0 |") < text.index("| 60.0 |")
    assert markdown([entry]).index("| 60.0 |") < markdown([entry]).index("| 70.0 |")


def test_all_images_are_the_last_number_of_shots() -> None:
    text = markdown([result(shots=ALL_SHOTS), result(shots=16)])
    assert text.index("| foods | 16 |") < text.index("| foods | all |")


def test_a_cautious_choice_is_in_the_table_and_below_it() -> None:
    entry = result(gain_shown=False)
    cautious = dataclasses.replace(
        entry, protocol=dataclasses.replace(entry.protocol, cautious=True)
    )
    assert "| coop, cautious |" in markdown([cautious])
    assert "search.cautious=true has put zero-shot in their place" in markdown([cautious])
    assert "search.cautious" not in markdown([entry])
