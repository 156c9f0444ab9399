"""What the README and the configurations promise is what runs.

Accuracies may differ a little on another processor: where rounding moves a validation image to the
other side, another candidate is tried next. So a single accuracy may move by some test images, an
average over data sets by less than a point; zero-shot chooses nothing, and hardly moves at all.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipelines.suites import load_suite, plan
from safe_ray.compose import packaged_tree
from safe_ray.report import read_summary
from safe_ray.report.cells import NOT_SHOWN
from safe_ray.report.rows import AVERAGE, summarise

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
AVERAGE_MOVES, ZERO_SHOT_MOVES, CELL_MOVES = 1.0, 1.0, 6.0
SHOTS = {"one": 1, "two": 2, "four": 4, "eight": 8, "sixteen": 16}


def moves(row: str, column: str) -> float:
    """How far a cell of a table of accuracies may move."""
    if AVERAGE in row:
        return AVERAGE_MOVES
    return ZERO_SHOT_MOVES if column.lower() == "zero-shot" else CELL_MOVES


@dataclass(frozen=True)
class Printed:
    """Tables of the same columns as the program prints them, and the words there as one line.

    The words leave out the sentence on gains that are not shown, since who is marked may move.
    """

    titles: list[str]
    tables: list[list[list[str]]]
    words: str

    @property
    def rows(self) -> list[list[str]]:
        return [row for table in self.tables for row in table]


def read_printed(text: str) -> Printed:
    lines = [line.strip() for line in text.splitlines()]
    rules = [number for number, line in enumerate(lines) if line and set(line) == {"─"}]
    titles = re.split(r"  +", lines[rules[0] - 1])
    cells = [re.split(r"  +", line) for line in lines]
    in_columns = [len(row) == len(titles) for row in cells]
    tables = [
        [cells[at] for at in range(rule + 1, end) if in_columns[at] and cells[at] != titles]
        for rule, end in zip(rules, [*rules[1:], len(lines)], strict=True)
    ]
    prose = (at for at in range(rules[0], len(lines)) if at not in rules and not in_columns[at])
    words = " ".join(" ".join(lines[at] for at in prose).partition("Done in ")[0].split())
    return Printed(titles, tables, words.partition(f"{NOT_SHOWN} In ")[0].strip())


def number(cell: str) -> float | None:
    found = re.match(r"[+-]?\d+\.\d", cell.strip("*").removeprefix(f"{NOT_SHOWN} "))
    return float(found[0]) if found else None


def promised(document: str = "docs/report.md") -> Printed:
    """What the demo prints: all of it, or only the first table in the README."""
    text = (ROOT / document).read_text()
    return read_printed(text.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0])


def test_the_readme_shows_the_first_of_the_demos_tables():
    shown, whole = promised("README.md"), promised()
    assert shown.titles == whole.titles
    assert shown.tables == whole.tables[:1]


def test_the_demos_tables_have_averages_that_are_those_of_their_rows():
    tables = promised().tables
    assert len(tables) == 2
    for *rows, average in tables:
        assert len(rows) == 5
        assert average[0] == AVERAGE
        columns = [column for column, cell in enumerate(average) if number(cell) is not None]
        assert len(columns) == 3
        for column in columns:
            mean = sum(number(row[column]) or 0.0 for row in rows) / len(rows)
            assert number(average[column]) == pytest.approx(mean, abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_prints_what_the_documents_show(tmp_path: Path, stored_maps: Path):
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0]
    found = re.search(r"\$\(BIN\)/python (-m safe_ray\.tune.*)", recipe)
    assert found is not None, recipe
    command = [sys.executable, *shlex.split(found[1]), f"storage={tmp_path}", "cluster.num_cpus=2"]
    command += [f"features.store={stored_maps}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    printed, shown = read_printed(done.stdout), promised()
    assert printed.titles == shown.titles
    assert printed.words == shown.words
    assert [row[0] for row in printed.rows] == [row[0] for row in shown.rows]
    for ours, theirs in zip(printed.rows, shown.rows, strict=True):
        for title, cell, expected in zip(shown.titles, ours, theirs, strict=True):
            accuracy = number(expected)
            if accuracy is None:
                assert cell == expected
            else:
                assert number(cell) == pytest.approx(accuracy, abs=moves(theirs[0], title)), title

    promised_lines = [line.split() for line in README.splitlines() if line[:2] == "  "]
    for name in ("report", "predict"):
        [line] = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == [name]]
        [shown_line] = [words for words in promised_lines if words[:1] == [name]]
        # The name of the sweep is made up, and its folder lies elsewhere.
        assert [Path(word).name for word in line[2:]] == [
            Path(word).name for word in shown_line[2:]
        ]
        assert len(line) == len(shown_line)


Cells = dict[tuple[str, str], float]


def read_markdown(text: str) -> dict[str, Cells]:
    """The means of each table of accuracies over shots: heading -> (shots, data set) -> mean."""
    tables: dict[str, Cells] = {}
    for section in text.split("\n## ")[1:]:
        lines = [line.strip("|").split("|") for line in section.splitlines() if line[:1] == "|"]
        cells = [[cell.strip() for cell in line] for line in lines if "--:" not in line[0]]
        if cells and cells[0][0] == "shots":
            tables[section.partition("\n")[0]] = {
                (row[0], column): mean
                for row in cells[1:]
                for column, cell in zip(cells[0][2:], row[2:], strict=True)
                if (mean := number(cell)) is not None
            }
    return tables


TABLES = {"SAFE minus zero-shot", "SAFE", "Zero-shot"}
RESULTS = {
    heading: cells
    for heading, cells in read_markdown((ROOT / "docs" / "results.md").read_text()).items()
    if heading in TABLES
}


def expected(file: Path) -> str:
    """The sentence after `# expect:`, over the lines of comment that it takes."""
    comments = [line[1:].strip() for line in file.read_text().splitlines() if line[:1] == "#"]
    return " ".join(comments).partition("expect: ")[2]


def expected_gains(file: Path) -> dict[int, float]:
    """Points over zero-shot by shots, on average over data sets."""
    found = re.findall(
        r"([+-]\d+\.\d) ± \d+\.\d(?: points over zero-shot)? at (\w+)", expected(file)
    )
    return {SHOTS[shots]: float(gain) for gain, shots in found}


EXPECTING = [
    file
    for folder in ("conf", "pipelines", "docs")
    for file in sorted((ROOT / folder).rglob("*.*"))
    if file.suffix in {".py", ".md", ".yaml"} and expected(file)
]
TASKS = [file for file in EXPECTING if file.parent.name == "tasks"]


def test_every_expectation_has_its_reader():
    """One that is added below another name has to be added here, to be held against what runs."""
    assert {file.relative_to(ROOT).as_posix() for file in EXPECTING} == {
        "conf/suite/coop11.yaml",
        "conf/suite/embedded.yaml",
        "conf/suite/embedded_short.yaml",
        "conf/suite/embedded_small.yaml",
        "conf/tasks/embedded_coarse.yaml",
        "conf/tasks/embedded_seeds.yaml",
    }
    for file in TASKS:
        assert set(expected_gains(file)) == set(yaml.safe_load(file.read_text())["shots"])


@pytest.mark.parametrize("name", ["coop11", "embedded", "embedded_short"])
def test_a_suite_has_as_many_tasks_as_it_says(name: str, tmp_path: Path):
    tasks = plan(load_suite(name), [f"storage={tmp_path}"]).tasks
    assert expected(packaged_tree() / "suite" / f"{name}.yaml").startswith(f"{len(tasks)} tasks")


def test_imagenet_fills_as_much_of_the_store_as_coop11_says():
    text = expected(packaged_tree() / "suite" / "coop11.yaml")
    (group,) = load_suite("coop11").groups
    views = yaml.safe_load((packaged_tree() / "features" / "default.yaml").read_text())["views"]
    bytes_a_view = 7 * 7 * 2048 * 2
    assert f"{bytes_a_view // 1000} KB" in text
    classes, test = 1000, 50_000
    episodes = [(shots, min(shots, 4)) for shots in group.shots for _ in group.seeds]
    maps = sum(classes * (shots * (views + 1) + val) for shots, val in episodes) + test
    assert "close to 200 GB" in text
    assert 170e9 < maps * bytes_a_view < 200e9


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_what_tasks_are_expected_to_gain_is_in_the_results(file: Path):
    """The mean of the results' cells is an average over the same tasks, but for rounding."""
    datasets = yaml.safe_load(file.read_text())["datasets"]
    gains = RESULTS["SAFE minus zero-shot"]
    for shots, gain in expected_gains(file).items():
        cells = [gains[str(shots), dataset] for dataset in datasets]
        assert sum(cells) / len(cells) == pytest.approx(gain, abs=0.1)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole embedded suite: the folder of its report."""
    storage = tmp_path_factory.mktemp("storage")
    command = [sys.executable, "-m", "pipelines.benchmark", "suite=embedded"]
    command += [f"storage={storage}", "cluster.num_cpus=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return storage / "outputs" / "embedded"


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_the_embedded_suite_gives_the_results_that_are_printed(embedded: Path):
    measured = read_markdown((embedded / "benchmark.md").read_text())
    assert set(RESULTS) == TABLES
    for heading, cells in RESULTS.items():
        assert set(measured[heading]) == set(cells)
        for (shots, column), mean in cells.items():
            found = measured[heading][shots, column]
            assert found == pytest.approx(mean, abs=moves(column, heading)), (heading, shots)


@pytest.mark.long
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_tasks_gain_what_is_expected_of_them(embedded: Path, file: Path):
    chosen = yaml.safe_load(file.read_text())
    results = [
        result
        for result in read_summary(embedded)
        if result.dataset in chosen["datasets"]
        and result.shots in chosen["shots"]
        and result.seed in chosen["seeds"]
    ]
    averages = {row.shots: 100 * row.gain.mean for row in summarise(results) if row.is_average}
    assert averages == pytest.approx(expected_gains(file), abs=AVERAGE_MOVES)
