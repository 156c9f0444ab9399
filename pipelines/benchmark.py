"""`python -m pipelines.benchmark`: run a suite, and print its tables and its figure.

The benchmark's folder is `<storage>/outputs/<name>`:

    benchmark.json    what was run, so that the report can be made again
    benchmark.md      tables of every method, how the winners were chosen, published figures
    benchmark.csv     the same cells
    benchmark.png, benchmark.svg
                      accuracy over shots
    summary.json, results.parquet, results.md, correct.parquet
                      of all tasks, as a sweep leaves them

The summaries alone are enough to make the report again: `python -m pipelines.benchmark report`.
Beside a `correct.parquet`, its intervals are those over seeds and test images.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import CONFIG_DIR, HELP, Option, answer, help_lines
from safe_ray.arguments import parse as parse_options
from safe_ray.cli import RESTART, restarts
from safe_ray.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from pipelines.suites import Plan
    from safe_ray.config import SweepConfig
    from safe_ray.report.correct import Correct
    from safe_ray.report.field import Benchmark
    from safe_ray.report.summary import TaskResult

REMEMBERED = "benchmark.json"
MARKDOWN_FILE = "benchmark.md"
CSV_FILE = "benchmark.csv"
FIGURES = {"png": "benchmark.png", "svg": "benchmark.svg"}
REPORT = "report"

USAGE = """usage: python -m pipelines.benchmark suite=NAME [options] [group.knob=value]
       python -m pipelines.benchmark report [suite=NAME] [--out FOLDER] FOLDER...

Run every task of a suite, then write its tables and its figure. The same command again goes on
where it stopped.

examples:
  python -m pipelines.benchmark suite=embedded
      the data sets of the package, at the shots that each has images for
  python -m pipelines.benchmark suite=coop11 data.root=/data storage=/shared sweep=first
      the field's eleven data sets on RN50, named, to go on with later
  python -m pipelines.benchmark suite=mine.yaml 'tasks.seeds=[1]' --list
      what a suite of your own would run, with one seed only
  python -m pipelines.benchmark report outputs/embedded
      tables and figure again, from summary.json, without any training
  python -m pipelines.benchmark report suite=coop11 --out both outputs/first outputs/second
      the tasks of two sweeps in one report

suite=PATH.yaml reads a suite of your own. sweep=NAME names the benchmark, else it is called after
the suite. All other settings are those of `python -m safe_ray.tune`, whose --help lists them.

options:"""
OPTIONS = (
    Option("--list", "print the suites, or with suite=NAME what it would run, and do nothing"),
    CONFIG_DIR,
    *RESTART,
    Option("--out", "where `report` writes; by default the first folder that it reads", "FOLDER"),
    HELP,
)


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    suite: str | None
    config_dir: str | None
    out: str | None
    list_only: bool
    report: bool
    help: bool
    flags: frozenset[str]
    folders: tuple[str, ...]
    overrides: tuple[str, ...]


def parse(arguments: Sequence[str]) -> Request:
    """Understand the arguments.

    Raises:
        InputError: an option that does not exist, or one that lacks its value.
    """
    given = parse_options(arguments, OPTIONS)
    named = [argument for argument in given.rest if argument.startswith("suite=")]
    rest = [argument for argument in given.rest if argument not in named]
    out = given.value("--out")
    report = rest[:1] == [REPORT]
    folders = rest[1:] if report else []
    if report and not folders:
        raise InputError("report needs folders of sweeps: write report <folder> [<folder>...].")
    if out is not None and not report:
        raise InputError("--out belongs to report: a run is placed with storage= and sweep=.")
    return Request(
        suite=named[-1].partition("=")[2] if named else None,
        config_dir=given.value(CONFIG_DIR.name),
        out=out,
        list_only="--list" in given.flags,
        report=report,
        help=HELP.name in given.flags,
        flags=given.flags,
        folders=tuple(folders),
        overrides=() if report else tuple(rest),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    0 is for success, 1 for tasks without a result, 2 for a mistake in the command, 130 for an
    interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _run(parse(arguments)))


def _run(request: Request) -> int:
    if request.help:
        print("\n".join([USAGE, *help_lines(OPTIONS), "", "suites:", _suites(None)]))
        return 0
    if request.report:
        _say_where(report(request))
        return 0
    if request.suite is None:
        if request.list_only:
            print(_suites(request.config_dir))
            return 0
        raise InputError(
            f"Which suite shall be run? Write suite=NAME, one of {', '.join(_names(None))}."
        )
    return _planned(request)


def _planned(request: Request) -> int:
    from pipelines.suites import load_suite, plan

    assert request.suite is not None
    suite = load_suite(request.suite, request.config_dir)
    planned = plan(suite, request.overrides, request.config_dir)
    if request.list_only:
        print(describe(planned))
        return 0
    anew = restarts(request.flags, planned.sweeps)

    def work() -> int:
        _say_where(run(planned, anew))
        return 0

    return answer(
        work,
        "Interrupted; nothing that was finished is lost. To go on, give the same command "
        f"with sweep={planned.name}",
    )


def _names(config_dir: str | None) -> list[str]:
    from safe_ray.compose import ConfigTree

    return ConfigTree.of(config_dir).choices("suite")


def _suites(config_dir: str | None) -> str:
    """Return the suites, each with the sentence that opens its file."""
    from safe_ray.compose import ConfigTree

    tree = ConfigTree.of(config_dir)
    lines = []
    for name in tree.choices("suite"):
        file = tree.find("suite", name)
        opening: list[str] = []
        for line in [] if file is None else file.read_text().splitlines():
            if not line.startswith("#") or line.startswith("# command:"):
                break
            opening.append(line.removeprefix("#").strip())
        lines.append(f"  {name:<16} {' '.join(opening)}".rstrip())
    return "\n".join(lines)


def describe(planned: Plan) -> str:
    """Return what a benchmark will run, a line a sweep."""
    lines = [f"{planned.name}: {planned.sweeps[0].backbone.name}, results go to {planned.folder}"]
    for sweep in planned.sweeps:
        tasks = sweep.tasks
        count = len(tasks.tasks())
        lines.append(
            f"  {sweep.sweep}: {count} tasks of {sweep.search.candidates} candidates; shots "
            f"{', '.join(map(str, tasks.shots))}; seeds {', '.join(map(str, tasks.seeds))}; "
            f"{', '.join(tasks.datasets)}"
        )
    methods = planned.sweeps[0].method
    return "\n".join(
        [*lines, f"  {len(planned.tasks)} tasks in all, each with {', '.join(methods)}"]
    )


def run(planned: Plan, anew: bool = False) -> Path:
    """Run all sweeps, or go on with them, and write the report.

    Args:
        planned: the sweeps.
        anew: remove what was begun under their names.

    Returns:
        The benchmark's folder.

    Raises:
        InputError: something that the person who asked for it can mend. What has been computed is
            not lost.
        IncompleteError: tasks have no result; the report of the others is written.
    """
    from safe_ray.config import REMEMBERED as SWEEP_FILE

    several = len(planned.sweeps) > 1
    if several and (planned.folder / SWEEP_FILE).exists():
        raise InputError(
            f"{planned.folder} belongs to a single sweep: name the benchmark with sweep=<name>."
        )
    if several:
        # A last group whose images are missing is better known before the first one is trained.
        for sweep in planned.sweeps:
            _check(sweep)
    from safe_ray.report.correct import read_correct, write_correct
    from safe_ray.report.tables import write_report
    from safe_ray.sweep.begin import run_sweep
    from safe_ray.sweep.winners import describe_missing

    results: list[TaskResult] = []
    correct: list[Correct] = []
    missing: dict[str, str] = {}
    for sweep in planned.sweeps:
        done = run_sweep(sweep, anew)
        results += [_moved(result, done.folder, planned.folder) for result in done.results]
        correct += read_correct(done.folder)
        missing |= done.missing
    if results:
        if several:
            write_report(results, planned.folder, correct=correct)
            if correct:
                write_correct(correct, planned.folder)
        write_benchmark(_benchmark_of(planned, results, correct), planned.folder)
    if missing:
        raise IncompleteError(
            describe_missing(missing, len(planned.tasks), len(planned.sweeps[0].method))
        )
    return planned.folder


def _check(sweep: SweepConfig) -> None:
    """Refuse data sets and targets that a sweep would refuse, without leaving anything behind."""
    from safe_ray.data.manifest import load_manifest

    specs = sweep.dataset_specs()
    manifests = {
        name: load_manifest(spec, sweep.data.root, sweep.data.prompts)
        for name, spec in specs.items()
    }
    # Ray takes seconds to import, and missing images need not wait for it.
    from safe_ray.sweep.data import draw_episodes
    from safe_ray.sweep.targets import check_targets

    check_targets(specs, sweep.tasks.datasets, sweep.evaluation.targets)
    draw_episodes(sweep, manifests)


def _moved(result: TaskResult, old: Path, new: Path) -> TaskResult:
    """Return the result with its head, if it has one, relative to another folder."""
    if result.head is None:
        return result
    head = Path(os.path.relpath(old / result.head, new)).as_posix()
    return replace(result, head=head)


def _benchmark_of(
    planned: Plan, results: Sequence[TaskResult], correct: Sequence[Correct]
) -> Benchmark:
    from safe_ray.report.field import Benchmark
    from safe_ray.report.outcomes import Outcomes

    return Benchmark(
        planned.name,
        planned.sweeps[0].backbone.name,
        tuple(results),
        planned.suite.datasets,
        planned.suite.reference,
        Outcomes(correct) if correct else None,
    )


def report(request: Request) -> Path:
    """Make tables and figure again from the files of sweeps, without any training.

    Order, name and published figures are the suite's if one is named, else those that the first
    folder remembers.

    Returns:
        The folder that was written to.

    Raises:
        InputError: a summary cannot be read, or two hold the same method's result of a task or are
            of two backbones.
    """
    from pipelines.suites import load_suite
    from safe_ray.report.correct import read_correct
    from safe_ray.report.field import Benchmark
    from safe_ray.report.outcomes import Outcomes
    from safe_ray.report.summary import read_summary

    folders = [Path(folder).expanduser() for folder in request.folders]
    results = [result for folder in folders for result in read_summary(folder)]
    places = [folder if folder.is_dir() else folder.parent for folder in folders]
    first = places[0]
    benchmark = _remembered(first) or Benchmark(first.resolve().name, "", ())
    backbones = sorted(set(filter(None, map(_backbone, places))))
    if len(backbones) > 1:
        raise InputError(
            f"The sweeps are of the backbones {' and '.join(backbones)}: report each by itself."
        )
    benchmark = replace(benchmark, backbone="".join(backbones))
    if request.suite is not None:
        suite = load_suite(request.suite, request.config_dir)
        benchmark = replace(benchmark, datasets=suite.datasets, reference=suite.reference)
    correct = [row for place in places for row in read_correct(place)]
    benchmark = replace(
        benchmark, results=tuple(results), outcomes=Outcomes(correct) if correct else None
    )
    out = first if request.out is None else Path(request.out).expanduser()
    write_benchmark(benchmark, out)
    return out


def _backbone(folder: Path) -> str:
    """Return the backbone of a benchmark's or a sweep's folder, or "" if it does not say."""
    from safe_ray.config import REMEMBERED as SWEEP_FILE

    remembered = _remembered(folder)
    if remembered is not None:
        return remembered.backbone
    try:
        return str(json.loads((folder / SWEEP_FILE).read_text())["backbone"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _remembered(folder: Path) -> Benchmark | None:
    """Return what a benchmark's folder says of itself, or None if it is a sweep's."""
    from safe_ray.comparison.references import reference_of
    from safe_ray.report.field import Benchmark

    file = folder / REMEMBERED
    if not file.exists():
        return None
    try:
        said = json.loads(file.read_text())
        reference = said["reference"]
        return Benchmark(
            said["name"],
            said["backbone"],
            (),
            tuple(said["datasets"]),
            None if reference is None else reference_of(reference, str(file)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} cannot be read ({error!r}): remove it, and name the suite with suite=<name>."
        ) from None


def write_benchmark(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Write tables and figure, and return the files."""
    from safe_ray.files import write_atomically
    from safe_ray.report.field_text import csv_text, markdown
    from safe_ray.report.figures import accuracy_figure, render

    said = asdict(replace(benchmark, results=(), outcomes=None))
    del said["results"], said["outcomes"]
    # A figure that cannot be drawn must not cost the tables.
    contents = {
        REMEMBERED: json.dumps(said, indent=2, ensure_ascii=False) + "\n",
        MARKDOWN_FILE: markdown(benchmark, FIGURES["png"]),
        CSV_FILE: csv_text(benchmark),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    figure = accuracy_figure(benchmark)
    for kind, name in FIGURES.items():
        write_atomically(folder / name, render(figure, kind))
    return [folder / name for name in (*contents, *FIGURES.values())]


def _say_where(folder: Path) -> None:
    print(
        f"  tables    {folder / MARKDOWN_FILE}\n"
        f"  cells     {folder / CSV_FILE}\n"
        f"  figure    {folder / FIGURES['png']}"
    )


if __name__ == "__main__":
    sys.exit(main())
