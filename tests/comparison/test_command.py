from __future__ import annotations

import csv
import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safe_ray.comparison.command import main
from safe_ray.comparison.references import load_reference
from tests.comparison.results import DATASETS, record, records, written
from tests.report.html.pages import check_accessible, read

FILES = (
    "comparison.md",
    "comparison.csv",
    "comparison.parquet",
    "accuracy_over_shots.png",
    "accuracy_over_shots.svg",
    "critical_difference.png",
    "critical_difference.svg",
    "report.html",
)


@pytest.fixture
def sweeps(tmp_path: Path) -> list[str]:
    """Three sweeps: two share zero-shot, and the third lacks a data set at two shots."""
    third = records({"tip_adapter_f": 0.12})
    third = [line for line in third if (line["dataset"], line["shots"]) != ("foods", 2)]
    contents = {
        "a": records({"safe": 0.1, "zero_shot": 0.0}),
        "b": records({"gda": 0.08, "zero_shot": 0.0}),
        "c": third,
    }
    return [str(written(tmp_path / "outputs" / name, c)) for name, c in contents.items()]


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of a table of Markdown by their first cell."""
    part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_three_sweeps_are_one_comparison(sweeps, tmp_path: Path, capsys):
    assert main(sweeps) == 0
    folder = tmp_path / "outputs" / "comparison"
    assert {file.name for file in folder.iterdir()} == set(FILES)
    printed = capsys.readouterr().out
    text = (folder / "comparison.md").read_text()
    for said in (
        "4 methods on 21 tasks (4 data sets, shots 1, 2, seeds 1, 2, 3; rn50).",
        "Left out are 3 of 24 tasks, which not every method has: foods at 2 shots, seeds 1, 2, 3 "
        "(not with Tip-Adapter-F).",
        "test images are not drawn",
        "With 3 data sets no p can be below 0.2500.",
    ):
        assert said in printed
        assert said in text
    assert printed.endswith("".join(f"  {folder / name}\n" for name in FILES))

    lines = records({"safe": 0.1})
    one = [line["test_accuracy"] for line in lines if line["shots"] == 1]
    cells = rows_of(text, "Accuracy over shots")["SAFE"]
    assert cells[0].split(" ± ")[0] == f"{100 * np.mean(one):.1f}"
    foods = [v["test_accuracy"] for v in lines if (v["dataset"], v["shots"]) == ("foods", 1)]
    cells = rows_of(text, "Accuracy at 1 shot")["SAFE"]
    assert cells[DATASETS.index("foods")].split(" ± ")[0] == f"{100 * np.mean(foods):.1f}"
    assert "foods" not in rows_of(text, "Accuracy at 2 shots")["method"]
    assert list(rows_of(text, "Mean ranks"))[1:] == ["Tip-Adapter-F", "SAFE", "GDA", "zero-shot"]
    assert set(rows_of(text, "Difference to SAFE")) == {
        "method",
        "GDA",
        "Tip-Adapter-F",
        "zero-shot",
    }


def test_csv_and_parquet_hold_the_same_in_full_precision(sweeps, tmp_path: Path):
    assert main([*sweeps, "--out", str(tmp_path / "there")]) == 0
    lines = pq.read_table(tmp_path / "there" / "comparison.parquet").to_pylist()
    text = (tmp_path / "there" / "comparison.csv").read_text()
    as_text = [{k: "" if v is None else str(v) for k, v in line.items()} for line in lines]
    assert list(csv.DictReader(io.StringIO(text))) == as_text
    assert {line["quantity"] for line in lines} == {
        "accuracy",
        "macro_accuracy",
        "difference",
        "macro_difference",
        "mean_rank",
    }
    (cell,) = [
        line
        for line in lines
        if (line["quantity"], line["method"], line["dataset"], line["shots"])
        == ("macro_accuracy", "gda", "dogs", 2)
    ]
    expected = [
        line["test_macro_accuracy"]
        for line in records({"gda": 0.08})
        if (line["dataset"], line["shots"]) == ("dogs", 2)
    ]
    assert cell["value"] == pytest.approx(np.mean(expected), abs=1e-15)
    assert cell["tasks"] == 3


def test_the_figures_are_pictures_and_the_same_every_time(sweeps, tmp_path: Path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        assert main([*sweeps, "--out", str(folder)]) == 0
    for name in FILES[3:]:
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
        if name.endswith("png"):
            with Image.open(io.BytesIO(first)) as image:
                assert np.asarray(image.convert("L")).std() > 5
        elif name.endswith("svg"):
            assert ET.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"


def test_one_sweep_is_reported_in_its_own_folder_and_one_method_has_no_ranks(
    tmp_path: Path, capsys
):
    folder = written(tmp_path / "a", records({"gda": 0.1}))
    assert main([str(folder)]) == 0
    assert not (folder / "critical_difference.png").exists()
    assert "There are no ranks" in capsys.readouterr().out
    # The untouched model stands beside it.
    cells = rows_of((folder / "comparison.md").read_text(), "Accuracy over shots")
    assert cells["untouched model"] == ["30.0 ± 0.0", "30.0 ± 0.0"]


def test_published_averages_stand_beside_those_over_the_same_data_sets(tmp_path: Path):
    figures = load_reference("rn50")
    datasets = figures.datasets
    lines = records({"safe": 0.01}, datasets, (1, 2), (1,))
    lines = [line for line in lines if (line["dataset"], line["shots"]) != (datasets[0], 2)]
    folder = written(tmp_path / "a", lines)
    assert main([str(folder)]) == 0
    table = rows_of((folder / "comparison.md").read_text(), "Beside published averages")
    assert table["method"] == ["prompts", "1"]
    assert table["GDA† [6]"] == ["templates", "62.19"]
    assert table["CoOp?* [5]"] == ["templates", "59.80"]
    assert table["APE-T† [9]"] == ["descriptions", "67.23"]
    assert "SAFE, these sweeps" in table
    written(folder, [{**line, "backbone": "rn101"} for line in lines])
    assert main([str(folder)]) == 0
    assert "published" not in (folder / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to compare"),
        (["--bse", "safe"], "There is no option --bse"),
        (["nowhere"], "There is no "),
        (["a", "--baseline", "tip"], "no method 'tip' to take as --baseline"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch, capsys, arguments, words: str
):
    written(tmp_path / "a", [record("safe", 0.5)])
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert not said.out
    assert said.err.startswith("safe_ray: ")


def test_it_is_a_command_of_the_package(sweeps, tmp_path: Path):
    command = [sys.executable, "-m", "safe_ray.report", *sweeps, "--baseline", "gda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Difference to GDA" in done.stdout
    shown = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("usage: python -m safe_ray.report FOLDER...")


def test_the_page_has_the_comparison_and_needs_nothing_else(sweeps, tmp_path: Path, capsys):
    assert main([*sweeps, "--html", str(tmp_path / "mine.html")]) == 0
    assert str(tmp_path / "mine.html") in capsys.readouterr().out
    page = read((tmp_path / "mine.html").read_text())
    check_accessible(page)
    assert page.all("h1")[0].text == "3 sweeps compared"
    drawn = [image.attributes["alt"] for image in page.all("img")]
    assert drawn == ["Accuracy over shots", "Critical difference"]
    markdown = (tmp_path / "outputs" / "comparison" / "comparison.md").read_text()
    shown = [table.all("caption")[0].text for table in page.all("table")]
    assert shown == [line[3:] for line in markdown.splitlines() if line.startswith("## ")]
