"""A suite from the command line to tables and figure, and the report from summaries alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.benchmark import main
from safe_ray.report import TaskResult, read_summary, write_summary
from safe_ray.report.correct import Correct, write_correct
from safe_ray.report.rows import summarise
from tests.report.results import result

# Whichever test comes first waits for the suite.
pytestmark = pytest.mark.timeout(600)

FILES = ("benchmark.md", "benchmark.csv", "benchmark.png", "benchmark.svg")


def run(*arguments: str, timeout: float = 560) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.benchmark", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def table(folder: Path, heading: str) -> list[list[str]]:
    """The cells of the Markdown table below a heading, its header first."""
    lines = (folder / "benchmark.md").read_text().splitlines()
    rows: list[list[str]] = []
    for line in lines[lines.index(f"## {heading}") + 1 :]:
        if line.startswith("## "):
            break
        if line.startswith("|") and "--:" not in line:
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stored_maps: Path) -> tuple[Path, str]:
    """The small embedded suite: where its sweeps are, and what was printed."""
    storage = tmp_path_factory.mktemp("storage")
    where = [f"storage={storage}", f"features.store={stored_maps}"]
    done = run("suite=embedded_small", *where, "cluster.num_cpus=2")
    assert done.returncode == 0, done.stderr[-3000:]
    return storage / "outputs", done.stdout


@pytest.mark.slow
def test_a_suite_leaves_its_tables_and_its_figure(finished: tuple[Path, str]):
    outputs, printed = finished
    folder = outputs / "embedded_small"
    for name in FILES:
        assert (folder / name).stat().st_size > 0
    assert f"tables    {folder / 'benchmark.md'}" in printed
    with Image.open(folder / "benchmark.png") as image:
        assert image.format == "PNG"


@pytest.mark.slow
def test_the_tables_have_the_numbers_of_the_summaries(finished: tuple[Path, str]):
    outputs, _ = finished
    results = [r for number in (0, 1) for r in read_summary(outputs / f"embedded_small-{number}")]
    assert [(r.dataset, r.shots, r.seed) for r in results] == [
        ("icon_kinds", 1, 1),
        ("icon_kinds", 1, 2),
        ("icon_kinds", 2, 1),
        ("icon_kinds", 2, 2),
        ("game_icons", 1, 1),
        ("game_icons", 1, 2),
    ]
    header, *body = table(outputs / "embedded_small", "SAFE")
    assert header == ["shots", "seeds", "icon_kinds", "game_icons", "average"]
    for row in body:
        for name, cell in zip(header[2:4], row[2:4], strict=True):
            there = [
                r.test.accuracy["safe"]
                for r in results
                if (r.dataset, r.shots) == (name, int(row[0]))
            ]
            mean = "-" if not there else f"{100 * sum(there) / len(there):.1f}"
            assert cell.split(" ± ")[0] == mean
    assert [row[0] for row in body] == ["1", "2"]


@pytest.mark.slow
def test_the_summary_of_all_tasks_finds_every_head(finished: tuple[Path, str]):
    folder = finished[0] / "embedded_small"
    results = read_summary(folder)
    assert len(results) == 6
    for one in results:
        card = json.loads((folder / one.head / "head.json").read_text())
        assert card["alpha"] == one.best["alpha"]


@pytest.mark.slow
def test_the_report_comes_out_the_same_from_the_summaries_alone(
    finished: tuple[Path, str], tmp_path: Path
):
    outputs, _ = finished
    folder = outputs / "embedded_small"
    assert main(["report", "--out", str(tmp_path), str(folder)]) == 0
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.fixture
def summaries(tmp_path: Path) -> tuple[Path, Path, list[TaskResult]]:
    """Two sweeps' folders with a summary each and nothing else, and all their results."""
    results = [
        result(name, shots, seed, 0.6, 0.62 + 0.01 * seed * shots)
        for name in ("eurosat", "dtd")
        for shots in (1, 16)
        for seed in (1, 2, 3)
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    write_summary(results[:6], first)
    write_summary(results[6:], second)
    return first, second, results


def test_summaries_of_several_sweeps_become_one_report(
    summaries: tuple[Path, Path, list[TaskResult]], tmp_path: Path
):
    first, second, results = summaries
    out = tmp_path / "both"
    assert main(["report", "--out", str(out), str(first), str(second / "summary.json")]) == 0
    header, *body = table(out, "SAFE")
    assert header == ["shots", "seeds", "dtd", "eurosat", "average"]
    rows = {(row.dataset, row.shots): row for row in summarise(results)}
    for cells in body:
        for name, cell in zip(header[2:], cells[2:], strict=True):
            safe = rows[name, int(cells[0])].accuracy
            assert safe.half_width is not None
            assert cell.strip("*") == f"{100 * safe.mean:.1f} ± {100 * safe.half_width:.1f}"
    with (out / "benchmark.csv").open() as file:
        lines = list(csv.DictReader(file))
    # Zero-shot, a method with its difference and both by class; two numbers of shots, two data
    # sets, an average.
    assert len(lines) == (1 + 4) * 2 * 3


def test_sweeps_of_two_methods_over_the_same_tasks_become_one_report(
    summaries: tuple[Path, Path, list[TaskResult]], tmp_path: Path
):
    first, second, results = summaries
    others = [result(r.dataset, r.shots, r.seed, 0.6, 0.7, method="gda") for r in results]
    third = tmp_path / "third"
    write_summary(others, third)
    assert main(["report", str(third), str(first), str(second)]) == 0
    for heading in ("Zero-shot", "GDA", "SAFE", "GDA minus zero-shot", "SAFE minus zero-shot"):
        assert table(third, heading)[0] == ["shots", "seeds", "dtd", "eurosat", "average"]
    assert table(third, "GDA minus zero-shot")[1][2] == "+10.0 ± 0.0"


def test_a_report_has_intervals_over_images_where_sweeps_say_which_were_right(
    summaries: tuple[Path, Path, list[TaskResult]],
):
    first, _, _ = summaries
    right = np.arange(120) < 60
    results = [result("dtd", 1, 1, 0.5, 0.75), result("eurosat", 1, 1, 0.5, 0.75)]
    write_summary(results, first)
    assert main(["report", str(first)]) == 0
    assert table(first, "SAFE")[1][2:] == ["75.0", "75.0", "**75.0**"]
    rows = [
        Correct(name, 1, 1, method, there)
        for name in ("dtd", "eurosat")
        for method, there in (("zero_shot", right), ("safe", np.arange(120) < 90))
    ]
    write_correct(rows, first)
    assert main(["report", str(first)]) == 0
    cells = table(first, "SAFE")[1][2:]
    # 1.96 binomial standard errors of 0.75 over 120 images, and over twice as many.
    halves = [float(cell.strip("*").removeprefix("75.0 ± ")) for cell in cells]
    assert halves == pytest.approx([7.7, 7.7, 5.5], abs=0.5)
    assert "bootstrap which draws seeds and test images" in (first / "benchmark.md").read_text()


def test_the_same_method_and_task_in_two_sweeps_are_refused(
    summaries: tuple[Path, Path, list[TaskResult]], capsys: pytest.CaptureFixture[str]
):
    assert main(["report", str(summaries[0]), str(summaries[0])]) == 2
    assert (
        "2 results for the task eurosat-1shot-seed1 by the method safe" in capsys.readouterr().err
    )


def test_a_suite_gives_a_report_its_order_and_its_published_figures(
    summaries: tuple[Path, Path, list[TaskResult]],
):
    first, second, _ = summaries
    (second / "config.json").write_text(json.dumps({"backbone": {"name": "rn50"}}))
    assert main(["report", "suite=coop11", str(second), str(first)]) == 0
    assert table(second, "SAFE")[0] == ["shots", "seeds", "dtd", "eurosat", "average"]
    published = table(second, "Beside published figures, 16 shots")
    assert published[0] == ["method", "dtd", "eurosat"]
    assert published[3][0].startswith("Tip-Adapter-F† [")
    assert published[3][1:] == ["66.55", "84.54"]
    at_one = table(second, "Beside published figures, 1 shot")
    assert [row[0] for row in at_one] == [
        "method",
        "Zero-shot CLIP [1]",
        "**zero-shot**, this benchmark",
        "**SAFE**, this benchmark",
    ]
    text = (second / "benchmark.md").read_text()
    # What a folder remembers is enough to make it again.
    assert main(["report", str(second), str(first)]) == 0
    assert (second / "benchmark.md").read_text() == text


def test_published_figures_are_not_printed_beside_another_backbone(
    summaries: tuple[Path, Path, list[TaskResult]],
):
    first, _, _ = summaries
    (first / "config.json").write_text(json.dumps({"backbone": {"name": "pictogram"}}))
    assert main(["report", "suite=coop11", str(first)]) == 0
    assert "Tip-Adapter" not in (first / "benchmark.md").read_text()


def test_sweeps_of_two_backbones_are_not_averaged(
    summaries: tuple[Path, Path, list[TaskResult]], capsys: pytest.CaptureFixture[str]
):
    for folder, name in zip(summaries[:2], ("rn50", "rn101"), strict=True):
        (folder / "config.json").write_text(json.dumps({"backbone": {"name": name}}))
    assert main(["report", str(summaries[0]), str(summaries[1])]) == 2
    assert "of the backbones rn101 and rn50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Which suite shall be run? Write suite=NAME, one of coop11, embedded"),
        (["suite=coop"], "Did you mean 'coop11'"),
        (["report"], "report needs folders"),
        (["report", "nowhere"], "nowhere cannot be read"),
        (["--lists"], "There is no option --lists"),
        (["suite=embedded", "--out", "here"], "--out belongs to report"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("safe_ray: ")
    assert words in told


def test_missing_images_of_the_last_group_are_told_before_the_first_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    groups = [
        {"datasets": [name], "shots": [1], "seeds": [1]} for name in ("icon_kinds", "eurosat")
    ]
    file = tmp_path / "mixed.yaml"
    file.write_text(json.dumps({"backbone": "pictogram", "groups": groups}))
    assert main([f"suite={file}", f"storage={tmp_path}", f"data.root={tmp_path}"]) == 2
    assert "eurosat" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()


def test_what_a_suite_would_run_is_listed_and_nothing_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["suite=embedded", "--list", f"storage={tmp_path}", "sweep=first"]) == 0
    listed = capsys.readouterr().out
    assert f"first: pictogram, results go to {tmp_path / 'outputs' / 'first'}" in listed
    assert "first-1: 9 tasks of 16 candidates; shots 1, 2, 4; seeds 1, 2, 3; game_icons" in listed
    assert "81 tasks in all" in listed
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_the_suites_and_imports_nothing_heavy():
    code = (
        "import sys; from pipelines.benchmark import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'mlflow', 'matplotlib')))"
    )
    helped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert helped.returncode == 0
    for word in ("suite=NAME", "report", "--list", "coop11", "embedded_small"):
        assert word in helped.stdout
