"""`python -m pipelines.compare`: run every method on a suite, and write what comes out.

The benchmark's folder gets what `pipelines.benchmark` and `python -m safe_ray.report` write, and
`--out` (docs/results.md by default) gets one document: what the paired differences answer, the
comparison, and the tables of the baseline; its figures lie beside it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import CONFIG_DIR, HELP, Arguments, Option, answer, help_lines, parse
from safe_ray.cli import RESTART, restarts
from safe_ray.errors import InputError

if TYPE_CHECKING:
    from pipelines.suites import Plan
    from safe_ray.comparison.analysis import Difference
    from safe_ray.comparison.pairing import Paired
    from safe_ray.comparison.rows import ResultRow
    from safe_ray.report.field import Benchmark

FIRST = "safe"
QUESTIONS = (
    ("Does the blend beat both of its ends?", "safe", ("zero_shot", "tuned_pooling")),
    (
        "Do other blends do as well?",
        "safe",
        ("logit_blend", "weight_blend"),
    ),
    (
        "Does an adapter on SAFE's features beat SAFE, Tip-Adapter-F and the linear probe?",
        "safe_a",
        ("safe", "tip_adapter_f", "linear_probe"),
    ),
    (
        "Does SAFE beat what else trains a part of the model, or on its features?",
        "safe",
        ("prolip", "tip_adapter_f", "linear_probe", "clip_adapter", "task_residual"),
    ),
)
"""Each: what is asked, the method that is asked about, and those it is compared to."""

OUT = Option("--out", "the document (docs/results.md); its figures go beside it", "FILE")
OPTIONS = (OUT, CONFIG_DIR, *RESTART, HELP)
USAGE = """usage: python -m pipelines.compare suite=NAME [options] [group.knob=value]

Run every method of conf/method on every task of a suite, and write one document of what comes out.
The same command again goes on where it stopped.

examples:
  python -m pipelines.compare suite=embedded
      all methods on the data sets of the package
  python -m pipelines.compare suite=coop11 'method=[safe,tip_adapter_f]' --out two.md sweep=two
      two of them on the field's eleven

options:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, as `pipelines.benchmark` does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _compare(parse(arguments, OPTIONS)))


def _compare(given: Arguments) -> int:
    if HELP.name in given.flags:
        print("\n".join([USAGE, *help_lines(OPTIONS)]))
        return 0
    from pipelines.benchmark import run
    from pipelines.suites import load_suite, plan, split_suite
    from safe_ray.files import resolve_path

    name, overrides = split_suite(given.rest)
    if name is None:
        raise InputError("Which suite shall be run? Write suite=NAME, such as suite=embedded.")
    config_dir = given.value(CONFIG_DIR.name)
    if not any(text.startswith("method=") for text in overrides):
        overrides.append(f"method=[{','.join(all_methods(config_dir))}]")
    suite = load_suite(name, config_dir)
    planned = plan(suite, overrides, config_dir)
    out = resolve_path(given.value(OUT.name) or "docs/results.md")

    def work() -> int:
        from safe_ray.sweep.claim import was_begun

        resumed = any(map(was_begun, planned.sweeps))
        began = time.monotonic()
        folder = run(planned, restarts(given.flags, planned.sweeps))
        seconds = None if resumed else time.monotonic() - began
        files = write_document(planned, folder, out, given.rest, seconds)
        print("\n".join(f"  {file}" for file in files))
        return 0

    return answer(
        work,
        "Interrupted; nothing that was finished is lost. To go on, give the same command "
        f"with sweep={planned.name}",
    )


def all_methods(config_dir: str | None) -> list[str]:
    """Return the names of all methods, SAFE first."""
    from safe_ray.compose import ConfigTree

    names = ConfigTree.of(config_dir).choices("method")
    return sorted(names, key=lambda name: (name != FIRST, name))


def write_document(
    planned: Plan, folder: Path, out: Path, asked: Sequence[str], seconds: float | None
) -> list[Path]:
    """Write the comparison into the benchmark's folder, and the document; return the files.

    Args:
        planned: what was run.
        folder: of the benchmark.
        out: the document.
        asked: the arguments of the command.
        seconds: that the run took; None if it went on with one that was begun before.
    """
    from safe_ray.comparison.command import write_comparison
    from safe_ray.comparison.pairing import pair
    from safe_ray.comparison.rows import read_rows
    from safe_ray.files import link_file, write_atomically

    rows = read_rows(folder)
    paired = pair(rows)
    files = write_comparison(paired, folder)
    shown = shown_command(asked)
    benchmark = _benchmark(planned, folder)
    text = document(rows, paired, benchmark, shown, seconds, out.stem, planned.suite.notes)
    write_atomically(out, text)
    figures = [file for file in files if file.suffix == ".png"]
    for figure in figures:
        link_file(figure, out.with_name(f"{out.stem}_{figure.name}"))
    return [out, *files]


def shown_command(asked: Sequence[str]) -> str:
    """Return the command as a shell takes it, without where things lie."""
    placed = ("storage=", "features.store=", "sweep=", "--out", "cluster.", "tracking.")
    shown = [f"'{text}'" if "[" in text else text for text in asked if not text.startswith(placed)]
    return " ".join(["python -m pipelines.compare", *shown])


def _benchmark(planned: Plan, folder: Path) -> Benchmark:
    from safe_ray.report.correct import read_correct
    from safe_ray.report.field import Benchmark
    from safe_ray.report.outcomes import Outcomes
    from safe_ray.report.summary import read_summary

    return Benchmark(
        planned.name,
        planned.sweeps[0].backbone.name,
        tuple(result for result in read_summary(folder) if result.method in (FIRST, "zero_shot")),
        planned.suite.datasets,
        None,
        Outcomes(read_correct(folder)),
    )


def document(
    rows: Sequence[ResultRow],
    paired: Paired,
    benchmark: Benchmark,
    command: str,
    seconds: float | None,
    stem: str,
    notes: Sequence[str] = (),
) -> str:
    """Return the document as Markdown.

    Args:
        rows: of all tasks and methods.
        paired: the tasks that all methods have.
        benchmark: of the baseline.
        command: that makes the document.
        seconds: that it took; None if that is not known.
        stem: what the names of figures begin with.
        notes: of the suite.
    """
    from safe_ray.comparison import analysis, tables
    from safe_ray.comparison.command import ACCURACY_FIGURE, RANKS_FIGURE
    from safe_ray.progress import duration
    from safe_ray.report.field_text import markdown

    averages = tables.shown(paired, analysis.averages(paired))
    ranked = analysis.ranking(paired)
    took = "" if seconds is None else f", in {duration(round(seconds))} on {os.cpu_count()} cores"
    lines = [
        "# Results on the embedded data sets" if benchmark.name == "embedded" else "# Results",
        "",
        f"One command wrote this{took} ({len(rows)} results, {len(paired.contestants)} methods):",
        "",
        f"    {command}",
        "",
        "Everything was chosen on validation images and nothing on a test image. A run elsewhere "
        "may differ where rounding does: a validation image that falls the other way changes what "
        "is tried next.",
        "",
        *(line for note in notes for line in (note, "")),
        *_answers(rows),
        f"![accuracy over shots, a line a method]({stem}_{ACCURACY_FIGURE}.png)",
        "",
    ]
    if ranked is not None:
        lines += [f"![mean ranks of the methods]({stem}_{RANKS_FIGURE}.png)", ""]
    shown = [tables.means_table(paired, averages)]
    shown.append(tables.differences_table(paired, analysis.differences(paired)))
    shown += [tables.ranking_table(ranked)] if ranked is not None else []
    for table in [*shown, *tables.dataset_tables(paired, averages)]:
        lines += table.markdown()
    body = markdown(benchmark).partition("\n## ")
    return "\n".join(lines).rstrip("\n") + "\n\n## " + body[2].rstrip("\n") + "\n"


def _answers(rows: Sequence[ResultRow]) -> Iterator[str]:
    """Yield what the paired differences say of each question whose methods were run."""
    from safe_ray.comparison.analysis import differences
    from safe_ray.comparison.pairing import pair

    there = {row.method for row in rows}
    yield from ("## What comes out", "")
    for question, method, others in QUESTIONS:
        known = [other for other in others if other in there]
        if method not in there or not known:
            continue
        some = [row for row in rows if row.method in (method, *known)]
        yield from (f"**{question}** Points of the method over each, paired by task:", "")
        paired = pair(some, method)
        shots = list(paired.shots)
        yield f"| {paired.baseline.title} over | all shots | " + " | ".join(map(str, shots)) + " |"
        yield "|:--" + "|--:" * (1 + len(shots)) + "|"
        found = differences(paired)
        for contestant in paired.contestants[1:]:
            cells = [one for one in found if one.contestant == contestant]
            if len(shots) == 1:
                cells = [cells[0], cells[0]]
            yield f"| {contestant.title} | " + " | ".join(map(_reversed, cells)) + " |"
        yield ""
    yield (
        "Intervals are of 95%, by a bootstrap over data sets and seeds; a star marks p < 0.05 of "
        "the signed-rank test over data sets, Holm's correction included."
    )
    yield ""


def _reversed(found: Difference) -> str:
    """Return what the baseline has over a contestant, in points."""
    star = "\\*" if found.p_holm < 0.05 else ""
    if found.interval is None:
        return f"{-100 * found.mean:+.1f}{star}"
    low, high = (-100 * end for end in reversed(found.interval))
    return f"{-100 * found.mean:+.1f} [{low:+.1f}, {high:+.1f}]{star}"


if __name__ == "__main__":
    sys.exit(main())
