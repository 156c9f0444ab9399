"""`python -m safe_ray.report`: compare the methods of one or several sweeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safe_ray.arguments import (
    CONFIG_DIR,
    HELP,
    VERSION,
    Arguments,
    Option,
    answer,
    parse,
    told_of_itself,
    usage,
)
from safe_ray.errors import InputError
from safe_ray.specs import shots_text

if TYPE_CHECKING:
    from safe_ray.comparison.pairing import Paired
    from safe_ray.comparison.tables import Table
    from safe_ray.report.published import Reference

MARKDOWN_FILE = "comparison.md"
CSV_FILE = "comparison.csv"
PARQUET_FILE = "comparison.parquet"
ACCURACY_FIGURE = "accuracy_over_shots"
RANKS_FIGURE = "critical_difference"
KINDS = ("png", "svg")
FOLDER = "comparison"
PAGE_FILE = "report.html"

OUT = Option(
    "--out",
    "where the report goes; by default the sweep's folder, or `comparison` beside the first of "
    "several",
    "FOLDER",
)
BASE = Option("--baseline", "the method that the others are compared to (safe)", "METHOD")
HTML = Option("--html", "the page; by default `report.html` beside the tables", "FILE")
OPTIONS = (OUT, BASE, HTML, CONFIG_DIR, VERSION, HELP)
USAGE = """\
usage: python -m safe_ray.report FOLDER... [options]

Compare the methods of one or several sweeps over the tasks that they share: mean accuracies,
paired differences to a baseline with intervals and tests, mean ranks with their critical
difference, and two figures. What sweeps have alike is merged. The page of a single sweep is its
report, made again.

examples:
  python -m safe_ray.report outputs/first
      the methods of one sweep
  python -m safe_ray.report outputs/first outputs/second --out both
      those of two, in a folder of their own
  python -m safe_ray.report outputs/first outputs/second --baseline tip_adapter_f
      what the others gain over one of them

options:"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Returns:
        0 for success, 2 for a mistake in what was asked for, 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: _compare(parse(arguments, OPTIONS)))


def _compare(given: Arguments) -> int:
    if told_of_itself(given, lambda: usage(USAGE, OPTIONS)):
        return 0
    if not given.rest:
        raise InputError(
            "There is nothing to compare: name the folders of sweeps, as in outputs/first."
        )
    from safe_ray.comparison.pairing import pair
    from safe_ray.comparison.rows import merge, read_rows
    from safe_ray.files import resolve_path

    places = [resolve_path(text) for text in dict.fromkeys(given.rest)]
    rows = merge([(place, read_rows(place)) for place in places])
    paired = pair(rows, given.value(BASE.name))
    folders = [place if place.is_dir() else place.parent for place in places]
    asked = given.value(OUT.name)
    if asked is not None:
        out = resolve_path(asked)
    else:
        out = folders[0] if len(folders) == 1 else folders[0].parent / FOLDER
    named = given.value(HTML.name)
    page = out / PAGE_FILE if named is None else resolve_path(named)
    published = _published(paired, given.value(CONFIG_DIR.name))
    files = write_comparison(paired, out, published, (page, folders))
    print("\n".join(f"  {file}" for file in files))
    return 0


def _published(paired: Paired, config_dir: str | None) -> Reference | None:
    """Return the published figures of the backbone, if there are any."""
    from safe_ray.comparison.references import REFERENCES, load_reference
    from safe_ray.compose import ConfigTree

    if len(paired.backbones) != 1:
        return None
    (backbone,) = paired.backbones
    known = ConfigTree.of(config_dir).find(REFERENCES, backbone) is not None
    return load_reference(backbone, config_dir) if known else None


def write_comparison(
    paired: Paired,
    folder: Path,
    published: Reference | None = None,
    page: tuple[Path, Sequence[Path]] | None = None,
) -> list[Path]:
    """Print the tables of a comparison, write all of its files, and return these.

    Args:
        paired: what is compared.
        folder: where the files go.
        published: figures of the same backbone to print beside, or None.
        page: the file of the page, and the folders of the sweeps; None for no page.

    Raises:
        InputError: the folder cannot be written to, a file of a sweep is damaged, or matplotlib is
            not installed.
    """
    from safe_ray.comparison import analysis, figures, records, tables
    from safe_ray.files import write_atomically
    from safe_ray.report.figures import render

    averages = analysis.averages(paired)
    macro = analysis.averages(paired, macro=True)
    compared = analysis.differences(paired)
    ranked = analysis.ranking(paired)
    shown = tables.shown(paired, averages)
    overview = [tables.means_table(paired, shown)]
    if compared:
        overview.append(tables.differences_table(paired, compared))
    if ranked is not None:
        overview.append(tables.ranking_table(ranked))
    if published is not None:
        beside = tables.published_table(paired, shown, published)
        overview += [beside] if beside is not None else []
    head = [_opening(paired), *paired.notes]
    if ranked is None:
        head.append("There are no ranks, which need two methods and two data sets or shots.")
    _print([*head, ""])
    for table in overview:
        _print(list(table.text()))

    lines = records.records(
        paired,
        [("accuracy", shown), ("macro_accuracy", macro)],
        [
            ("difference", compared),
            ("macro_difference", analysis.differences(paired, macro=True)),
        ],
        ranked,
    )
    names = [ACCURACY_FIGURE] + [RANKS_FIGURE] * (ranked is not None)
    everything = [*overview, *tables.dataset_tables(paired, shown)]
    text = _markdown(head, everything, names)
    write_atomically(folder / MARKDOWN_FILE, text)
    write_atomically(folder / CSV_FILE, records.csv_text(lines))
    records.write_parquet(lines, folder / PARQUET_FILE)
    written = [folder / MARKDOWN_FILE, folder / CSV_FILE, folder / PARQUET_FILE]
    # A figure that cannot be drawn does not cost the tables: they are written already.
    drawn = [figures.accuracy_figure(paired, shown)]
    if ranked is not None:
        drawn.append(figures.critical_difference_figure(ranked))
    for name, figure in zip(names, drawn, strict=True):
        for kind in KINDS:
            file = folder / f"{name}.{kind}"
            write_atomically(file, render(figure, kind))
            written.append(file)
    if page is not None:
        from safe_ray.comparison.page import write_page

        file, folders = page
        pictures = {
            name.replace("_", " ").capitalize(): (folder / f"{name}.png").read_bytes()
            for name in names
        }
        written.append(write_page(folders, head, everything, pictures, file))
    return written


def _opening(paired: Paired) -> str:
    import numpy as np

    tasks = int((~np.isnan(paired.accuracy[0])).sum())
    count, sets, seeds = len(paired.contestants), len(paired.datasets), len(paired.seeds)
    return (
        f"{count} method{'s' * (count != 1)} on {tasks} task{'s' * (tasks != 1)} "
        f"({sets} data set{'s' * (sets != 1)}, shots {', '.join(map(shots_text, paired.shots))}, "
        f"seed{'s' * (seeds != 1)} {', '.join(map(str, paired.seeds))}; "
        f"{', '.join(paired.backbones)})."
    )


def _markdown(head: Sequence[str], tables: Sequence[Table], figures: Sequence[str]) -> str:
    lines = ["# Comparison", ""]
    for sentence in head:
        lines += [sentence, ""]
    for name in figures:
        lines += [f"![{name.replace('_', ' ')}]({name}.png)", ""]
    for table in tables:
        lines += table.markdown()
    return "\n".join(lines).rstrip("\n") + "\n"


def _print(lines: Sequence[str]) -> None:
    """Print lines, in ASCII where UTF-8 is not spoken."""
    text = "\n".join(lines)
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    if not encoding.startswith("utf"):
        text = text.replace("±", "+/-").encode("ascii", "replace").decode()
    print(text)
