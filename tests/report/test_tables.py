from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scipy import stats

from safe_ray.report import Accuracies, print_table, read_summary, write_report
from safe_ray.report.tables import COLUMNS, flat, markdown, summarise
from tests.report.results import on_test, result

THREE_SEEDS = [
    result("foods", 2, 1, zero_shot=0.50, tuned_only=0.52, safe=0.58),
    result("foods", 2, 2, zero_shot=0.50, tuned_only=0.56, safe=0.61),
    result("foods", 2, 3, zero_shot=0.50, tuned_only=0.54, safe=0.60),
    result("birds", 2, 1, zero_shot=0.30, tuned_only=0.40, safe=0.42),
    result("birds", 2, 2, zero_shot=0.30, tuned_only=0.44, safe=0.45),
    result("birds", 2, 3, zero_shot=0.30, tuned_only=0.36, safe=0.39),
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
    assert foods.safe.mean == pytest.approx((0.58 + 0.61 + 0.60) / 3)
    low, high = stats.t.interval(0.95, 2, loc=foods.safe.mean, scale=stats.sem([0.58, 0.61, 0.60]))
    assert (foods.safe.low, foods.safe.high) == (pytest.approx(low), pytest.approx(high))
    assert foods.zero_shot.half_width == pytest.approx(0)
    assert foods.gain.mean == pytest.approx(foods.safe.mean - 0.5)


def test_the_difference_is_paired_by_seed() -> None:
    moving = [
        result(seed=1, zero_shot=0.3, safe=0.4),
        result(seed=2, zero_shot=0.5, safe=0.6),
        result(seed=3, zero_shot=0.7, safe=0.8),
    ]
    (row,) = summarise(moving)
    assert row.safe.half_width > 0.3
    assert row.gain.half_width == pytest.approx(0, abs=1e-9)


def test_the_average_is_taken_seed_by_seed() -> None:
    average = summarise(THREE_SEEDS)[-1]
    per_seed = [(0.58 + 0.42) / 2, (0.61 + 0.45) / 2, (0.60 + 0.39) / 2]
    assert average.is_average
    assert average.seeds == 3
    assert average.safe.mean == pytest.approx(sum(per_seed) / 3)
    half = stats.t.ppf(0.975, 2) * stats.sem(per_seed)
    assert average.safe.half_width == pytest.approx(half)


def test_an_average_uses_the_seeds_that_all_data_sets_have() -> None:
    average = summarise(THREE_SEEDS[:-1])[-1]
    assert average.seeds == 2
    apart = [result("foods", 2, 1, safe=0.5), result("birds", 2, 2, safe=0.7)]
    without = summarise(apart)[-1]
    assert without.safe.mean == pytest.approx(0.6)
    assert without.safe.half_width is None


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
    apart = [result(seed=1, safe=0.3), result(seed=2, safe=0.5)]
    text = printed(apart)
    line = next(line for line in text.splitlines() if "foods" in line)
    assert line.split()[2:4] == ["two", "seeds"]
    assert "±" not in line
    assert "-10.0" in line
    assert "Below three seeds there is no interval" in text
    assert "| foods | 2 | two seeds | coop | 50.0 | 55.0 | 40.0 | -10.0 |" in markdown(apart)


def test_a_gain_that_validation_does_not_show_is_marked_in_its_row_and_said_below() -> None:
    doubtful = [result("birds"), result("foods", seed=1), result("foods", seed=2, gain_shown=False)]
    for text in (printed(doubtful), markdown(doubtful)):
        marked = [line for line in text.splitlines() if "! +10.0" in line]
        assert len(marked) == 1
        assert "foods" in marked[0]
        assert "! In 1 of 3 tasks the validation samples do not show a gain" in text
    for text in (printed(THREE_SEEDS), markdown(THREE_SEEDS)):
        assert "!" not in text


UNEQUAL = Accuracies(zero_shot=0.4, tuned_only=0.7, safe=0.65)


def test_mean_per_class_accuracy_has_a_table_of_its_own_where_it_differs() -> None:
    tasks = [result("birds"), result("foods", per_class=UNEQUAL)]
    lines = [line for line in markdown(tasks).splitlines() if line.startswith("| foods")]
    assert lines == [
        "| foods | 2 | one seed | coop | 50.0 | 55.0 | 60.0 | +10.0 |",
        "| foods | 2 | one seed | coop | 40.0 | 70.0 | 65.0 | +25.0 |",
    ]
    text = printed(tasks)
    assert text.count("Mean per class accuracy") == 1
    assert text.count("Test accuracy in per cent") == 1
    assert "+25.0" in text
    average = summarise(tasks, "mean_per_class")[-1]
    assert average.gain.mean == pytest.approx((0.25 + 0.1) / 2)


def test_a_difference_that_rounding_hides_makes_no_second_table() -> None:
    nearly = Accuracies(zero_shot=0.5 + 1e-9, tuned_only=0.55, safe=0.6)
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
            test=on_test(0.5, 0.5, 0.5 + 0.1 * seed),
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
    assert "| foods | 2 | 3 | coop | 50.0 ± 0.0 | 54.0 ± 5.0 | 59.7 ± 3.8 | +9.7 ± 3.8 |" in lines
    assert lines[4].startswith("| **average** |")


def test_a_report_is_three_files_that_agree(tmp_path: Path) -> None:
    files = write_report(THREE_SEEDS, tmp_path / "sweep")
    assert [file.name for file in files] == ["summary.json", "results.parquet", "results.md"]
    rows = pq.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    summary = read_summary(tmp_path / "sweep")
    assert [(r["dataset"], r["seed"], r["test_safe"], r["best_lr"]) for r in rows] == [
        (s.dataset, s.seed, s.test.safe, s.best.lr) for s in summary
    ]
    flattened = [(flat(s), s) for s in summary]
    assert [row for row, _ in flattened] == rows
    for row, s in flattened:
        assert row["test_mean_per_class_safe"] == s.test.mean_per_class.safe
        assert row["validation_gain_shown"] is s.validation.gain_shown
        assert row["protocol_metric"] == s.protocol.metric
    assert "data set" in (tmp_path / "sweep" / "results.md").read_text()


def test_the_markdown_file_names_the_tasks_without_a_result(tmp_path: Path) -> None:
    *_, text = write_report(THREE_SEEDS, tmp_path, ["b-2shot-seed1", "c-2shot-seed1"])
    assert text.read_text().endswith("\nWithout a result: b-2shot-seed1, c-2shot-seed1.\n")
    *_, text = write_report(THREE_SEEDS, tmp_path)
    assert "Without a result" not in text.read_text()
